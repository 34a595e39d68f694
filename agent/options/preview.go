package options

import "errors"

// Outcome is what applying a file would do to an option.
type Outcome uint8

const (
	// Unchanged: it has this value already, or has no effect here.
	Unchanged Outcome = iota + 1
	// WouldApply: it would be in force at once.
	WouldApply
	// NeedsRestart: it would be accepted, and in force after the next start of flared.
	NeedsRestart
	// WouldReject: it, or the whole file because of it, would be refused.
	WouldReject
)

// String returns the outcome as it appears in reports.
func (o Outcome) String() string {
	switch o {
	case Unchanged:
		return "unchanged"
	case WouldApply:
		return "would_apply"
	case NeedsRestart:
		return "needs_restart"
	case WouldReject:
		return "would_reject"
	default:
		return "unknown"
	}
}

// Verdict is what applying a file would do to one option.
type Verdict struct {
	Key      string // empty for a line, or a file, in which no option can be made out
	Current  string // in force now
	Proposed string // in force afterwards, or as the file has what is refused
	Outcome  Outcome
	Reason   string // of a refusal, or ReasonNoEffect
	Message  string // that goes with Reason
	Line     int    // of the file; 0 when it does not name the option
}

// Preview tells what applying a file would do: to each option that it names, and to
// each that would change because it does not. Its arguments are those of Report, but
// running are the options in force before.
func Preview(running, wanted Options, settings []Setting, err error, line *CommandLine) []Verdict {
	var out []Verdict
	type place struct {
		key  string
		line int
	}
	told := map[place]bool{}
	for _, st := range Report(running, wanted, settings, err, line) {
		if st.Line == 0 && st.State == Applied {
			continue
		}
		v := Verdict{Key: st.Key, Current: st.Effective, Proposed: wanted.Value(st.Key), Outcome: Unchanged,
			Reason: st.Reason, Message: st.Message, Line: st.Line}
		switch s := lookup(st.Key); {
		case st.State == Rejected:
			v.Outcome, v.Proposed = WouldReject, st.Configured
		case s == nil || err != nil:
			v.Proposed = st.Configured
		case st.State == PendingRestart && s.Live:
			v.Outcome = WouldApply
		case st.State == PendingRestart:
			v.Outcome = NeedsRestart
		}
		told[place{v.Key, v.Line}] = true
		out = append(out, v)
	}
	var refused *ParseError
	if errors.As(err, &refused) {
		for _, p := range refused.Problems {
			if !told[place{p.Key, p.Line}] {
				out = append(out, Verdict{Key: p.Key, Current: running.Value(p.Key), Outcome: WouldReject, Reason: p.Reason, Message: p.Message, Line: p.Line})
			}
		}
	}
	return out
}
