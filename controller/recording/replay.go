package recording

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/flarekv/flare/controller/core"
)

// Summary is what a recording has, as far as it was replayed.
type Summary struct {
	Programs []string       // versions that recorded it
	Reigns   int            // each of which begins with a state
	Steps    int            // of the core
	Inputs   map[string]int // by type
	Effects  map[string]int // by type
	Noted    int            // steps in which an input was only noted
	States   int            // steps after which the whole state was compared
	Checks   int            // of an invariant
	Lines    int
	Foreign  int    // lines of something else, such as a log
	Torn     int    // lines that a controller could not write to their end
	End      string // why recording ended, when it did before the controller
}

// ErrDisagrees tells that the core does not do what it did.
var ErrDisagrees = errors.New("the core does something else than was recorded")

// ErrBroken tells that an invariant is broken.
var ErrBroken = errors.New("an invariant is broken")

// Replay lets the core take every step of a recording, in place and on a copy, and
// compares what comes of it with what was recorded. Every invariant is looked at after
// each step. It ends with the first disagreement.
func Replay(from io.Reader) (Summary, error) {
	p := player{Summary: Summary{Inputs: map[string]int{}, Effects: map[string]int{}}}
	in := bufio.NewReaderSize(from, 1<<20)
	var torn error // the last line, should nothing follow that makes sense of it
	for {
		text, err := in.ReadBytes('\n')
		whole := err == nil
		if text = bytes.TrimSpace(text); len(text) > 0 {
			p.Lines++
			if torn != nil && !bytes.HasPrefix(text, []byte(`{"recording"`)) {
				return p.Summary, torn
			}
			torn = nil
			if err := p.take(text, whole); errors.Is(err, errTorn) {
				torn = fmt.Errorf("line %d: %w", p.Lines, err)
				p.Torn++
			} else if err != nil {
				return p.Summary, fmt.Errorf("line %d: %w", p.Lines, err)
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			if p.Reigns == 0 {
				return p.Summary, errors.New("it is no recording: no reign begins in it")
			}
			return p.Summary, nil
		case errors.Is(err, io.ErrUnexpectedEOF): // of a compressed file of a controller that was killed
			return p.Summary, nil
		case err != nil:
			return p.Summary, err
		}
	}
}

// errTorn tells of a line that is no JSON. It is the last of a controller that was
// killed, or the file is damaged.
var errTorn = errors.New("it cannot be read")

// player is a recording being replayed.
type player struct {
	Summary
	state core.State
}

// take takes one line.
func (p *player) take(text []byte, whole bool) error {
	if !slices.ContainsFunc([]string{`{"recording":`, `{"in":`, `{"end":`}, func(s string) bool { return bytes.HasPrefix(text, []byte(s)) }) {
		if !whole || !json.Valid(text) && bytes.HasPrefix(text, []byte("{")) {
			return errTorn
		}
		p.Foreign++
		return nil
	}
	var l line
	if err := json.Unmarshal(text, &l); err != nil {
		return fmt.Errorf("%w: %w", errTorn, err)
	}
	switch {
	case l.Begin != nil:
		if l.Begin.Format != Format {
			return fmt.Errorf("the recording has format %d, this program reads %d", l.Begin.Format, Format)
		}
		if !slices.Contains(p.Programs, l.Begin.Program) {
			p.Programs = append(p.Programs, l.Begin.Program)
		}
		state, err := stateOf(l.Begin.State)
		if err != nil {
			return fmt.Errorf("the state that a reign begins with: %w", err)
		}
		p.state = state
		p.Reigns++
		return nil
	case l.End != "":
		p.End = l.End
		return nil
	case p.Reigns == 0:
		return errors.New("a step before the first reign: the beginning of the recording is missing")
	}
	in, err := inputOf(l)
	if err != nil {
		return err
	}
	p.Steps++
	if err := p.step(l, in); err != nil {
		return fmt.Errorf("step %d, %s: %w", p.Steps, core.Describe(in), err)
	}
	return nil
}

// step takes one step, and compares.
func (p *player) step(l line, in core.Input) error {
	before := p.state.Clone()
	effects, judged, owed := core.Advance(&p.state, in, l.More, l.Owing)
	p.Inputs[l.In]++
	if !judged {
		p.Noted++
	}
	for _, e := range effects {
		p.Effects[reflect.TypeOf(e).Name()]++
	}
	if err := compare(l, lineOf(in, l.More, l.Owing, &p.state, effects)); err != nil {
		return err
	}
	if l.State != nil {
		p.States++
		got := digests(&p.state)
		for _, field := range slices.Sorted(maps.Keys(union(got, l.State))) {
			if got[field] != l.State[field] {
				v := reflect.ValueOf(p.state).FieldByName(field)
				if !v.IsValid() {
					return fmt.Errorf("%w: there is no field %s in the state any more", ErrDisagrees, field)
				}
				return fmt.Errorf("%w: in the state after it %s differs; here it is\n%s", ErrDisagrees, field, appendPlain(nil, v))
			}
		}
	}
	t := core.Transition{Before: before, Input: in, After: p.state, Effects: effects, Owed: owed}
	if err := t.Check(); err != nil {
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
	p.Checks += len(core.Invariants())
	if l.More || l.Owing {
		return nil // Step has nothing to be told beside the input
	}
	after, again := core.Step(before, in)
	if !reflect.DeepEqual(after, p.state) || !reflect.DeepEqual(again, effects) {
		return fmt.Errorf("%w: on a copy of the state Step does something else than Advance in place", ErrDisagrees)
	}
	return nil
}

// compare compares what came of a step, but for the digests of the state.
func compare(want, got line) error {
	texts := func(list []effect) (out []string) {
		for _, e := range list {
			out = append(out, e.String())
		}
		return out
	}
	told := func(list []string) string {
		if len(list) == 0 {
			return "    nothing"
		}
		return "    " + strings.Join(list, "\n    ")
	}
	if a, b := texts(want.Do), texts(got.Do); !slices.Equal(a, b) {
		return fmt.Errorf("%w\n  recorded:\n%s\n  now:\n%s", ErrDisagrees, told(a), told(b))
	}
	if want.Seq != got.Seq || want.Version != got.Version || want.Saved != got.Saved {
		return fmt.Errorf("%w\n  recorded: decided %d, map version %d, saved %d\n  now:      decided %d, map version %d, saved %d",
			ErrDisagrees, want.Seq, want.Version, want.Saved, got.Seq, got.Version, got.Saved)
	}
	return nil
}

func union(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}
