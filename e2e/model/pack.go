package model

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// A codec packs values of one type into few bytes and unpacks them again, by the
// layout of the type: a field that is added to the core is part of the packed form
// without anybody having to think of it. Unexported fields are packed, too.
//
// Times are packed as distances to the time of the world, see clocks.go, so that
// states that differ only in when they happen have one packed form. What is unpacked
// is at the time Epoch.
//
// Strings, and values of the types in shared, are packed as numbers of a dictionary.
type codec struct {
	pack   packer
	unpack unpacker
}

type packer func(w *packing, p unsafe.Pointer)
type unpacker func(r *unpacking, p unsafe.Pointer)

// packing is a value being packed.
type packing struct {
	d   *dictionary
	now int64 // of the world, milliseconds
	b   []byte

	strings map[string]uint64 // known numbers, so that no lock is needed
}

// unpacking is a value being unpacked.
type unpacking struct {
	d *dictionary
	b []byte
}

func (r *unpacking) uvarint() uint64 {
	if len(r.b) > 0 && r.b[0] < 0x80 {
		v := r.b[0]
		r.b = r.b[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		panic("model: packed value ends too early")
	}
	r.b = r.b[n:]
	return v
}

func (r *unpacking) varint() int64 {
	u := r.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (w *packing) uvarint(v uint64) { w.b = binary.AppendUvarint(w.b, v) }
func (w *packing) varint(v int64)   { w.uvarint(uint64(v)<<1 ^ uint64(v>>63)) }

// A dictionary numbers strings and the packed forms of shared values. Numbers begin
// with 1; 0 is the empty string.
type dictionary struct {
	mu      sync.RWMutex
	strings map[string]uint64
	words   atomic.Pointer[[]string]

	values []*values
}

// values are the numbered values of one type.
type values struct {
	mu   sync.RWMutex
	ids  map[string]uint64
	list atomic.Pointer[[]unsafe.Pointer] // to immutable values
}

func newDictionary() *dictionary {
	d := &dictionary{strings: map[string]uint64{"": 0}}
	d.words.Store(&[]string{""})
	return d
}

func (w *packing) word(s string) uint64 {
	if s == "" {
		return 0
	}
	if id, ok := w.strings[s]; ok {
		return id
	}
	id := w.d.number(s)
	if len(w.strings) < 1<<16 {
		w.strings[s] = id
	}
	return id
}

func (d *dictionary) number(s string) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if id, ok := d.strings[s]; ok {
		return id
	}
	words := append(*d.words.Load(), s)
	d.words.Store(&words)
	d.strings[s] = uint64(len(words) - 1)
	return uint64(len(words) - 1)
}

// number returns the number of a packed value, which make unpacks when it is new.
func (v *values) number(packed []byte, unpack func() unsafe.Pointer) uint64 {
	v.mu.RLock()
	id, ok := v.ids[string(packed)]
	v.mu.RUnlock()
	if ok {
		return id
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if id, ok := v.ids[string(packed)]; ok {
		return id
	}
	list := append(*v.list.Load(), unpack())
	v.list.Store(&list)
	v.ids[string(packed)] = uint64(len(list) - 1)
	return uint64(len(list) - 1)
}

// compiler builds codecs for one dictionary.
type compiler struct {
	d      *dictionary
	shared map[reflect.Type]bool
	errs   []error // fields that the table of clocks should have, and has not
}

// node is the codec of a type, with a test for its zero value.
type node struct {
	codec
	zero func(p unsafe.Pointer) bool
}

var timeType = reflect.TypeFor[time.Time]()

func (c *compiler) compile(t reflect.Type) node {
	n := c.plain(t)
	if !c.shared[t] {
		return n
	}
	table := &values{ids: map[string]uint64{}}
	table.list.Store(&[]unsafe.Pointer{nil})
	c.d.values = append(c.d.values, table)
	inner := n.codec
	size := t.Size()
	n.pack = func(w *packing, p unsafe.Pointer) {
		at := len(w.b)
		inner.pack(w, p)
		packed := w.b[at:]
		id := table.number(packed, func() unsafe.Pointer {
			v := reflect.New(t)
			inner.unpack(&unpacking{d: w.d, b: append([]byte(nil), packed...)}, v.UnsafePointer())
			return v.UnsafePointer()
		})
		w.b = w.b[:at]
		w.uvarint(id)
	}
	n.unpack = func(r *unpacking, p unsafe.Pointer) {
		v := (*table.list.Load())[r.uvarint()]
		if size > 0 {
			reflect.NewAt(t, p).Elem().Set(reflect.NewAt(t, v).Elem())
		}
	}
	return n
}

func (c *compiler) plain(t reflect.Type) node {
	if t == timeType {
		c.errs = append(c.errs, fmt.Errorf("a time.Time outside of a struct"))
	}
	switch t.Kind() {
	case reflect.Bool:
		return node{codec{
			func(w *packing, p unsafe.Pointer) {
				if *(*bool)(p) {
					w.b = append(w.b, 1)
				} else {
					w.b = append(w.b, 0)
				}
			},
			func(r *unpacking, p unsafe.Pointer) { *(*bool)(p) = r.uvarint() != 0 },
		}, func(p unsafe.Pointer) bool { return !*(*bool)(p) }}
	case reflect.Int, reflect.Int64:
		return node{codec{
			func(w *packing, p unsafe.Pointer) { w.varint(*(*int64)(p)) },
			func(r *unpacking, p unsafe.Pointer) { *(*int64)(p) = r.varint() },
		}, func(p unsafe.Pointer) bool { return *(*int64)(p) == 0 }}
	case reflect.Uint, reflect.Uint64:
		return node{codec{
			func(w *packing, p unsafe.Pointer) { w.uvarint(*(*uint64)(p)) },
			func(r *unpacking, p unsafe.Pointer) { *(*uint64)(p) = r.uvarint() },
		}, func(p unsafe.Pointer) bool { return *(*uint64)(p) == 0 }}
	case reflect.Int8, reflect.Uint8:
		return node{codec{
			func(w *packing, p unsafe.Pointer) { w.b = append(w.b, *(*byte)(p)) },
			func(r *unpacking, p unsafe.Pointer) { *(*byte)(p) = r.b[0]; r.b = r.b[1:] },
		}, func(p unsafe.Pointer) bool { return *(*byte)(p) == 0 }}
	case reflect.Int32, reflect.Uint32:
		return node{codec{
			func(w *packing, p unsafe.Pointer) { w.uvarint(uint64(*(*uint32)(p))) },
			func(r *unpacking, p unsafe.Pointer) { *(*uint32)(p) = uint32(r.uvarint()) },
		}, func(p unsafe.Pointer) bool { return *(*uint32)(p) == 0 }}
	case reflect.Float64:
		return node{codec{
			func(w *packing, p unsafe.Pointer) { w.b = binary.LittleEndian.AppendUint64(w.b, *(*uint64)(p)) },
			func(r *unpacking, p unsafe.Pointer) {
				*(*uint64)(p) = binary.LittleEndian.Uint64(r.b)
				r.b = r.b[8:]
			},
		}, func(p unsafe.Pointer) bool { return *(*uint64)(p) == 0 }}
	case reflect.String:
		return node{codec{
			func(w *packing, p unsafe.Pointer) { w.uvarint(w.word(*(*string)(p))) },
			func(r *unpacking, p unsafe.Pointer) { *(*string)(p) = (*r.d.words.Load())[r.uvarint()] },
		}, func(p unsafe.Pointer) bool { return *(*string)(p) == "" }}
	case reflect.Struct:
		return c.structure(t)
	case reflect.Slice:
		return c.slice(t)
	case reflect.Array:
		return c.array(t)
	case reflect.Pointer:
		return c.pointer(t)
	}
	panic(fmt.Sprintf("model: %v cannot be packed: a state is plain data", t))
}

// structure packs a struct as a mask of the fields that are not zero, and those.
func (c *compiler) structure(t reflect.Type) node {
	var all []reflect.StructField
	for i := range t.NumField() {
		all = append(all, t.Field(i))
	}
	return c.fields(t, all)
}

// fields compiles some fields of a struct.
func (c *compiler) fields(t reflect.Type, some []reflect.StructField) node {
	type field struct {
		node
		offset uintptr
	}
	var fields []field
	for _, f := range some {
		n, ok := c.clockField(t, f)
		if !ok {
			n = c.compile(f.Type)
		}
		fields = append(fields, field{n, f.Offset})
	}
	if len(fields) > 64 {
		panic(fmt.Sprintf("model: %v has more than 64 fields", t))
	}
	return node{codec{
		func(w *packing, p unsafe.Pointer) {
			var mask uint64
			for i := range fields {
				if f := &fields[i]; !f.zero(unsafe.Add(p, f.offset)) {
					mask |= 1 << i
				}
			}
			w.uvarint(mask)
			for i := range fields {
				if mask&(1<<i) != 0 {
					f := &fields[i]
					f.pack(w, unsafe.Add(p, f.offset))
				}
			}
		},
		func(r *unpacking, p unsafe.Pointer) {
			mask := r.uvarint()
			for i := range fields {
				if mask&(1<<i) != 0 {
					f := &fields[i]
					f.unpack(r, unsafe.Add(p, f.offset))
				}
			}
		},
	}, func(p unsafe.Pointer) bool {
		for i := range fields {
			if f := &fields[i]; !f.zero(unsafe.Add(p, f.offset)) {
				return false
			}
		}
		return true
	}}
}

// sliceHeader is a slice as the language lays it out.
type sliceHeader struct {
	data     unsafe.Pointer
	len, cap int
}

// slice packs nil and empty alike.
func (c *compiler) slice(t reflect.Type) node {
	elem := c.compile(t.Elem())
	size := t.Elem().Size()
	return node{codec{
		func(w *packing, p unsafe.Pointer) {
			s := (*sliceHeader)(p)
			w.uvarint(uint64(s.len))
			for i := range s.len {
				elem.pack(w, unsafe.Add(s.data, uintptr(i)*size))
			}
		},
		func(r *unpacking, p unsafe.Pointer) {
			n := int(r.uvarint())
			if n == 0 {
				return
			}
			v := reflect.MakeSlice(t, n, n)
			data := v.UnsafePointer()
			for i := range n {
				elem.unpack(r, unsafe.Add(data, uintptr(i)*size))
			}
			reflect.NewAt(t, p).Elem().Set(v)
		},
	}, func(p unsafe.Pointer) bool { return (*sliceHeader)(p).len == 0 }}
}

// pointer packs what it points to; each unpacked value has its own.
func (c *compiler) pointer(t reflect.Type) node {
	elem := c.compile(t.Elem())
	return node{codec{
		func(w *packing, p unsafe.Pointer) {
			v := *(*unsafe.Pointer)(p)
			if v == nil {
				w.b = append(w.b, 0)
				return
			}
			w.b = append(w.b, 1)
			elem.pack(w, v)
		},
		func(r *unpacking, p unsafe.Pointer) {
			if r.uvarint() != 0 {
				v := reflect.New(t.Elem())
				elem.unpack(r, v.UnsafePointer())
				reflect.NewAt(t, p).Elem().Set(v)
			}
		},
	}, func(p unsafe.Pointer) bool { return *(*unsafe.Pointer)(p) == nil }}
}

func (c *compiler) array(t reflect.Type) node {
	elem := c.compile(t.Elem())
	size, n := t.Elem().Size(), t.Len()
	return node{codec{
		func(w *packing, p unsafe.Pointer) {
			for i := range n {
				elem.pack(w, unsafe.Add(p, uintptr(i)*size))
			}
		},
		func(r *unpacking, p unsafe.Pointer) {
			for i := range n {
				elem.unpack(r, unsafe.Add(p, uintptr(i)*size))
			}
		},
	}, func(p unsafe.Pointer) bool {
		for i := range n {
			if !elem.zero(unsafe.Add(p, uintptr(i)*size)) {
				return false
			}
		}
		return true
	}}
}
