package recording

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"unicode/utf8"
)

// encoding/json writes plain data as programs want to see it: it leaves out what a tag
// says, makes words of numbers, and replaces what is no UTF-8. Here a value has to be the
// very same when it is read again, so its form follows from its type alone:
//
//	struct    object of its fields, without those that are zero
//	slice     array; one of length 0 is not a nil one, which is zero
//	pointer   what it points to
//	string    string, or {"hex": ...} when it is no UTF-8
//
// numbers and truth values as they are. There is one form for each value.

// appendPlain appends the JSON form of plain data.
func appendPlain(b []byte, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.Bool:
		return strconv.AppendBool(b, v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.AppendInt(b, v.Int(), 10)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return strconv.AppendUint(b, v.Uint(), 10)
	case reflect.String:
		return appendString(b, v.String())
	case reflect.Slice:
		b = append(b, '[')
		for i := range v.Len() {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendPlain(b, v.Index(i))
		}
		return append(b, ']')
	case reflect.Pointer:
		return appendPlain(b, v.Elem())
	case reflect.Struct:
		b = append(b, '{')
		first := true
		for i := range v.NumField() {
			f := v.Field(i)
			if f.IsZero() {
				continue
			}
			if !first {
				b = append(b, ',')
			}
			first = false
			b = append(b, '"')
			b = append(b, v.Type().Field(i).Name...)
			b = append(b, '"', ':')
			b = appendPlain(b, f)
		}
		return append(b, '}')
	}
	panic(fmt.Sprintf("recording: a %v is no plain data", v.Type()))
}

func appendString(b []byte, s string) []byte {
	if !utf8.ValidString(s) {
		b = append(b, `{"hex":"`...)
		b = hex.AppendEncode(b, []byte(s))
		return append(b, '"', '}')
	}
	text, err := json.Marshal(s)
	if err != nil {
		panic(err) // of a string there is none
	}
	return append(b, text...)
}

// parsePlain reads what appendPlain wrote of a value of v's type into v, which is zero.
func parsePlain(text []byte, v reflect.Value) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var x any
	if err := d.Decode(&x); err != nil {
		return err
	}
	return setPlain(v, x)
}

// setPlain sets v to what encoding/json made of its form.
func setPlain(v reflect.Value, x any) error {
	wrong := func() error { return fmt.Errorf("want a %v, found %v", v.Type(), x) }
	switch v.Kind() {
	case reflect.Bool:
		is, ok := x.(bool)
		if !ok {
			return wrong()
		}
		v.SetBool(is)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		number, _ := x.(json.Number)
		n, err := strconv.ParseInt(string(number), 10, v.Type().Bits())
		if err != nil {
			return wrong()
		}
		v.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		number, _ := x.(json.Number)
		n, err := strconv.ParseUint(string(number), 10, v.Type().Bits())
		if err != nil {
			return wrong()
		}
		v.SetUint(n)
	case reflect.String:
		if form, ok := x.(map[string]any); ok && len(form) == 1 {
			digits, _ := form["hex"].(string)
			raw, err := hex.DecodeString(digits)
			if err != nil {
				return wrong()
			}
			v.SetString(string(raw))
			return nil
		}
		s, ok := x.(string)
		if !ok {
			return wrong()
		}
		v.SetString(s)
	case reflect.Slice:
		list, ok := x.([]any)
		if !ok {
			return wrong()
		}
		v.Set(reflect.MakeSlice(v.Type(), len(list), len(list)))
		for i, e := range list {
			if err := setPlain(v.Index(i), e); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return setPlain(v.Elem(), x)
	case reflect.Struct:
		object, ok := x.(map[string]any)
		if !ok {
			return wrong()
		}
		for name, e := range object {
			f := v.FieldByName(name)
			if !f.IsValid() || !f.CanSet() {
				return fmt.Errorf("%v has no field %s", v.Type(), name)
			}
			if err := setPlain(f, e); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	default:
		return fmt.Errorf("a %v is no plain data", v.Type())
	}
	return nil
}
