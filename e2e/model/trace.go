package model

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// describe tells an action in words.
func (w *World) describe(a Action) string {
	key := func(i int8) string {
		if int(i) < len(w.m.keys) {
			return w.m.keys[i]
		}
		return fmt.Sprint(i)
	}
	s := actionNames[a.Kind]
	switch a.Kind {
	case Save, SaveLosing, SaveFails, SaveUnknown:
		s += fmt.Sprintf(" seq %d version %d", w.Ctl.State.Saving.Seq, w.Ctl.State.Saving.Version)
	case Takeover:
		if a.A == 1 {
			s += ", what was under way is saved"
		}
		if a.B == 1 {
			s += ", the former controller goes on sending its map"
		}
	case See, Tick, LongTick, Respec, Pause, Resume, Override:
	case Write:
		s += " " + key(a.A)
		if a.B == 1 {
			s += " of a key that moves"
		}
	case AskLeft, LateAsk:
		s += fmt.Sprintf(" %s about %s", key(a.A), w.Nodes[a.A].Asks[a.B].Key)
	case Handover:
		s += fmt.Sprintf(" %s to %s", key(a.A), key(a.B))
	case Arrive, ArriveTwice:
		switch l := w.Mail[a.A]; l.Kind {
		case MailCommand:
			s += fmt.Sprintf(" %s %s", l.Command.Verb, l.Command.Name)
		case MailReport:
			s += " report of " + l.Report.Key
		case MailLease:
			s += " lease of " + l.Lease.Key
		}
	default:
		s += " " + key(a.A)
	}
	return s
}

// Summary tells what a world is like, a line a node.
func (w *World) Summary() string {
	var b strings.Builder
	s := &w.Ctl.State
	fmt.Fprintf(&b, "    controller: decided seq %d version %d, saved seq %d version %d, durable seq %d\n",
		s.Durable.Seq, s.Durable.Version, s.Saved.Seq, s.Saved.Version, w.API.Durable.Seq)
	for i := range w.Nodes {
		n := &w.Nodes[i]
		fmt.Fprintf(&b, "    %s", w.m.keys[i])
		for _, d := range s.Durable.Nodes {
			if d.Key() == w.m.keys[i] {
				fmt.Fprintf(&b, " %v/%v/p%d", d.Role, d.State, d.Partition)
			}
		}
		fmt.Fprintf(&b, " up=%t at %v of p%d map=%d", n.Up, n.Pos.LSN, n.partition(), n.Map.Version)
		if n.Held {
			fmt.Fprintf(&b, " leads p%d epoch %d open=%t lease=%d ms waits for %v", n.Tenure.Partition, n.Tenure.Epoch, n.Open, max(0, n.Until-w.Now), n.Lead.InSync())
		}
		if n.To != 0 {
			fmt.Fprintf(&b, " follows %s", w.m.keys[n.To-1])
		}
		for _, x := range []struct {
			is   bool
			name string
		}{{n.Cut, "cut"}, {n.Apart, "apart"}, {n.Frozen, "frozen"}} {
			if x.is {
				b.WriteString(" " + x.name)
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// Replay lets the actions happen one after the other and tells what they do. It returns
// the invariant that one of them breaks, and fails if one is not possible.
func (m *Model) Replay(actions []Action, out io.Writer) (broken, err error) {
	// A trace of a circle has long ticks for which the world has no budget.
	m.Patient = m.Budget.LongTick == 0 && slices.ContainsFunc(actions, func(a Action) bool { return a.Kind == LongTick })
	w := m.Initial()[0]
	say := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	w.say = say
	say("%s", w.Summary())
	wk := m.newWorker()
	for i, a := range actions {
		possible := false
		for _, x := range m.Actions(w, nil) {
			possible = possible || x == a
		}
		if !possible {
			return nil, fmt.Errorf("step %d, %v, is not possible", i+1, a)
		}
		fmt.Fprintf(out, "%3d ", i+1)
		err := m.Apply(w, a)
		if err == nil {
			err = m.Check(w)
		}
		if err != nil {
			say("%s", w.Summary())
			return err, nil
		}
		// As the explorer does, so that times are what they were there.
		w = wk.unpack(wk.pack(w))
		w.say = say
	}
	say("%s", w.Summary())
	return nil, nil
}

// WriteTrace writes a trace as a file that ReadTrace reads.
func WriteTrace(out io.Writer, world string, why error, actions []Action) error {
	b := bufio.NewWriter(out)
	fmt.Fprintf(b, "world %s\n", world)
	if why != nil {
		for line := range strings.Lines(why.Error()) {
			fmt.Fprintf(b, "# %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
	for _, a := range actions {
		fmt.Fprintln(b, a)
	}
	return b.Flush()
}

// ReadTrace reads a trace and the name of its world.
func ReadTrace(in io.Reader) (world string, actions []Action, err error) {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		switch name, ok := strings.CutPrefix(line, "world "); {
		case line == "" || strings.HasPrefix(line, "#"):
		case ok && world == "":
			world = name
		default:
			a, err := ParseAction(line)
			if err != nil {
				return world, actions, err
			}
			actions = append(actions, a)
		}
	}
	if world == "" {
		return "", nil, fmt.Errorf("the trace does not begin with the name of its world")
	}
	return world, actions, lines.Err()
}
