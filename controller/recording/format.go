package recording

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"reflect"
	"strconv"

	"github.com/flarekv/flare/controller/core"
)

// Format is the version of the format, in the first line of each reign.
const Format = 1

// line is one line of a recording: the beginning of a reign, one step of the core, or
// the end of what was recorded.
type line struct {
	Begin *begin `json:"recording,omitempty"`

	In string          `json:"in,omitempty"` // name of the input's type
	V  json.RawMessage `json:"v,omitempty"`  // the input
	// What core.Advance was told beside it.
	More  bool `json:"more,omitempty"`
	Owing bool `json:"owing,omitempty"`
	// What came of it: the effects in order, and of the state after it the number and
	// version of the map that is decided on, and the number that is saved.
	Do      []effect `json:"do,omitempty"`
	Seq     uint64   `json:"seq,omitempty"`
	Version uint64   `json:"version,omitempty"`
	Saved   uint64   `json:"saved,omitempty"`
	// State is there now and then: a digest of each field of the state that is not zero.
	State map[string]string `json:"state,omitempty"`

	End string `json:"end,omitempty"` // why nothing more was recorded
}

// begin is what a reign begins with.
type begin struct {
	Format  int             `json:"format"`
	Program string          `json:"program"` // its version
	At      string          `json:"at"`      // for people
	State   json.RawMessage `json:"state"`
}

// effect is one effect: itself when it is small, else its digest.
type effect struct {
	Do  string          `json:"do"` // name of its type
	V   json.RawMessage `json:"v,omitempty"`
	Is  string          `json:"is,omitempty"` // in a few words
	Sum string          `json:"sum,omitempty"`
}

// smallEffect is up to how many bytes an effect stands in a recording itself.
const smallEffect = 512

// inputs are the types of the core's inputs by their names.
var inputs = byName(
	core.Tick{}, core.SpecChanged{}, core.MembersChanged{}, core.AgentReport{}, core.AgentLost{}, core.Pinged{}, core.Pushed{},
	core.Command{}, core.Persisted{}, core.Done{}, core.TargetChecked{}, core.ClustersCompared{},
)

func byName(list ...core.Input) map[string]reflect.Type {
	types := map[string]reflect.Type{}
	for _, in := range list {
		t := reflect.TypeOf(in)
		types[t.Name()] = t
	}
	return types
}

// plain returns the form of plain data in a recording.
func plain(v any) json.RawMessage { return appendPlain(nil, reflect.ValueOf(v)) }

// inputOf reads an input.
func inputOf(l line) (core.Input, error) {
	t, ok := inputs[l.In]
	if !ok {
		return nil, fmt.Errorf("the core has no input %q", l.In)
	}
	v := reflect.New(t).Elem()
	if err := parsePlain(l.V, v); err != nil {
		return nil, fmt.Errorf("%s: %w", l.In, err)
	}
	return v.Interface().(core.Input), nil
}

// stateOf reads a state.
func stateOf(text json.RawMessage) (core.State, error) {
	var s core.State
	err := parsePlain(text, reflect.ValueOf(&s).Elem())
	return s, err
}

// lineOf makes the line of a step, but for the digests of the state.
func lineOf(in core.Input, more, owing bool, state *core.State, effects []core.Effect) line {
	l := line{In: reflect.TypeOf(in).Name(), V: plain(in), More: more, Owing: owing,
		Seq: state.Durable.Seq, Version: state.Durable.Version, Saved: state.Saved.Seq}
	for _, e := range effects {
		l.Do = append(l.Do, effectOf(e))
	}
	return l
}

func effectOf(e core.Effect) effect {
	out := effect{Do: reflect.TypeOf(e).Name()}
	text := plain(e)
	if len(text) <= smallEffect {
		out.V = text
	} else {
		out.Is, out.Sum = core.DescribeEffect(e), sum(text)
	}
	return out
}

// String tells an effect to people.
func (e effect) String() string {
	if e.Sum != "" {
		return fmt.Sprintf("%s (%s) digest %s", e.Do, e.Is, e.Sum)
	}
	return e.Do + " " + string(e.V)
}

func sum(text []byte) string {
	h := fnv.New64a()
	h.Write(text)
	return strconv.FormatUint(h.Sum64(), 16)
}

// digests returns the digest of each field of a state that is not zero.
func digests(s *core.State) map[string]string {
	v := reflect.ValueOf(s).Elem()
	out := map[string]string{}
	var b []byte
	for i := range v.NumField() {
		if f := v.Field(i); !f.IsZero() {
			b = appendPlain(b[:0], f)
			out[v.Type().Field(i).Name] = sum(b)
		}
	}
	return out
}
