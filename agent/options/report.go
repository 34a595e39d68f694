package options

import (
	"errors"
	"fmt"
	"slices"
)

// State tells what became of a configured option.
type State uint8

const (
	// Unknown: nobody has been asked yet.
	Unknown State = iota
	// Applied: in force.
	Applied
	// PendingRestart: accepted, in force after the next start of flared.
	PendingRestart
	// Rejected: refused, the former value stays in force.
	Rejected
)

// String returns the state as it appears in reports.
func (s State) String() string {
	switch s {
	case Applied:
		return "applied"
	case PendingRestart:
		return "pending_restart"
	case Rejected:
		return "rejected"
	default:
		return "unknown"
	}
}

// Reasons of a Status beside those of a Problem.
const (
	// ReasonFileRejected: the line is right, but another one of its file is not.
	ReasonFileRejected = "file_rejected"
	// ReasonCommandLine: the command line gives another value, which wins.
	ReasonCommandLine = "command_line"
	// ReasonEngine: RocksDB refuses the value; its words are in the message.
	ReasonEngine = "refused_by_rocksdb"
	// ReasonAdjusted: RocksDB took the value and made another one of it.
	ReasonAdjusted = "adjusted_by_rocksdb"
)

// Status is what became of one option.
type Status struct {
	Key        string
	Effective  string // in force
	Configured string // as the file asks for it; empty when it does not name the option
	State      State
	Reason     string // of a rejected option, or ReasonNoEffect
	Message    string // that goes with Reason: what is wrong and what would be right
	Line       int    // of the file; 0 when it does not name the option
}

// Report tells what became of every option when a file was applied, and of
// every other name that the file has. running are the options in force after
// it, wanted those of the file with the command line over them, settings and
// err what Parse returned for it; with an err, wanted is not looked at.
func Report(running, wanted Options, settings []Setting, err error, line *CommandLine) []Status {
	problems := make(map[int]Problem) // by line
	var refused *ParseError
	if errors.As(err, &refused) {
		for _, p := range refused.Problems {
			problems[p.Line] = p
		}
	}
	// A name that is there twice is reported by the line that is wrong.
	asked := make(map[string]Setting)
	for _, s := range settings {
		if _, again := asked[s.Key]; !again || problems[s.Line].Line != 0 {
			asked[s.Key] = s
		}
	}

	var out []Status
	for i := range table {
		key := table[i].Key
		st := Status{Key: key, Effective: table[i].get(&running), State: Applied}
		set, named := asked[key]
		if named {
			st.Configured, st.Line = set.Value, set.Line
		}
		switch p, wrong := problems[set.Line]; {
		case named && wrong:
			st.State, st.Reason, st.Message = Rejected, p.Reason, p.Message
		case named && err != nil && !means(key, set.Value, st.Effective):
			st.State, st.Reason = Rejected, ReasonFileRejected
			st.Message = "is not applied because another line is wrong: " + err.Error()
			if refused != nil && len(refused.Problems) > 0 {
				st.Message = "is not applied because another line is wrong: " + refused.Problems[0].Error()
			}
		case named && err == nil && line.Has(key) && !means(key, set.Value, table[i].get(&wanted)):
			st.State, st.Reason = Rejected, ReasonCommandLine
			st.Message = fmt.Sprintf("is given on flared's command line as %s, which wins; remove it from there or from the file", table[i].get(&wanted))
		case named && err == nil && line.Has(otherIndex(key)):
			st.State, st.Reason = Rejected, ReasonCommandLine
			st.Message = fmt.Sprintf("excludes %s, which is given on flared's command line and wins; remove it from there or from the file", otherIndex(key))
		case err == nil && st.Effective != table[i].get(&wanted):
			st.State = PendingRestart
		}
		out = append(out, st)
	}
	for _, s := range settings {
		p, wrong := problems[s.Line]
		if lookup(s.Key) != nil || slices.ContainsFunc(out, func(o Status) bool { return o.Key == s.Key }) {
			continue
		}
		st := Status{Key: s.Key, Configured: s.Value, Line: s.Line}
		switch old := ignoredSpec(s.Key); {
		case wrong:
			st.State, st.Reason, st.Message = Rejected, p.Reason, p.Message
		case old != nil:
			st.State, st.Reason = Applied, ReasonNoEffect
			st.Message = "is accepted without effect: " + old.Doc
		default:
			continue
		}
		out = append(out, st)
	}
	return out
}

// means reports whether a value as written is the value as read back.
func means(key, written, value string) bool {
	var scratch Options
	s := lookup(key)
	return s != nil && s.set(&scratch, written) == nil && s.get(&scratch) == value
}
