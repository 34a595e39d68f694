// Package wire turns what package options tells into messages: flared and the agent
// say the same, and only one of them may know RocksDB.
package wire

import (
	"github.com/flarekv/flare/agent/options"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

var states = map[options.State]agentv1.OptionState{
	options.Applied:        agentv1.OptionState_OPTION_STATE_APPLIED,
	options.PendingRestart: agentv1.OptionState_OPTION_STATE_PENDING_RESTART,
	options.Rejected:       agentv1.OptionState_OPTION_STATE_REJECTED,
}

var sources = map[options.Source]agentv1.OptionSource{
	options.FromDefault:     agentv1.OptionSource_OPTION_SOURCE_DEFAULT,
	options.FromFile:        agentv1.OptionSource_OPTION_SOURCE_FILE,
	options.FromAgent:       agentv1.OptionSource_OPTION_SOURCE_AGENT,
	options.FromCommandLine: agentv1.OptionSource_OPTION_SOURCE_COMMAND_LINE,
}

var outcomes = map[options.Outcome]agentv1.OptionOutcome{
	options.Unchanged:    agentv1.OptionOutcome_OPTION_OUTCOME_UNCHANGED,
	options.WouldApply:   agentv1.OptionOutcome_OPTION_OUTCOME_WOULD_APPLY,
	options.NeedsRestart: agentv1.OptionOutcome_OPTION_OUTCOME_NEEDS_RESTART,
	options.WouldReject:  agentv1.OptionOutcome_OPTION_OUTCOME_WOULD_REJECT,
}

// Status returns the message for what became of an option. The zero Source is not
// known.
func Status(s options.Status, from options.Source) *agentv1.OptionStatus {
	return &agentv1.OptionStatus{
		Key:        s.Key,
		Effective:  s.Effective,
		Configured: s.Configured,
		State:      states[s.State],
		Reason:     s.Reason,
		Message:    s.Message,
		Line:       uint32(s.Line),
		Source:     sources[from],
	}
}

// Verdicts returns the messages for what applying a file would do.
func Verdicts(verdicts []options.Verdict) []*agentv1.OptionVerdict {
	out := make([]*agentv1.OptionVerdict, len(verdicts))
	for i, v := range verdicts {
		out[i] = &agentv1.OptionVerdict{
			Key:      v.Key,
			Outcome:  outcomes[v.Outcome],
			Current:  v.Current,
			Proposed: v.Proposed,
			Reason:   v.Reason,
			Message:  v.Message,
			Line:     uint32(v.Line),
		}
	}
	return out
}
