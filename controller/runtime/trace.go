package runtime

import (
	"context"
	"log/slog"

	"github.com/flarekv/flare/controller/core"
)

// trace logs what a step has decided. Every record has the input that led to it, what
// the step asks for in consequence, the version of the map that shows it, and the
// number of the durable state with which it becomes true (seq): the record of the
// broadcast that follows has a seq not below that.
//
//	decision   a node's duty has changed: reason, node, old, new
//	event      what people are told: reason, message
//	refused    what somebody asked for is not done: reason, message
//	effects    what is asked for besides: a broadcast, a scale, a configuration
func (r *Runtime) trace(before core.State, in core.Input, state core.State, effects []core.Effect) {
	level := slog.LevelDebug
	var did []string
	told := false
	for _, e := range effects {
		if text := core.DescribeEffect(e); text != "" {
			did = append(did, text)
		}
		switch e.(type) {
		case core.Broadcast, core.ScaleTo, core.WriteConfig:
			level = slog.LevelInfo
		}
	}
	record := func(level slog.Level, msg string, version uint64, attrs ...any) {
		told = true
		r.log.Log(context.Background(), level, msg, append(attrs, "input", core.Describe(in), "effects", did,
			"map_version", version, "seq", state.Durable.Seq)...)
	}
	for _, e := range effects {
		switch e := e.(type) {
		case core.Decision:
			record(slog.LevelInfo, "decision", e.Version, "reason", e.Reason, "node", e.Node, "old", e.Old, "new", e.New)
		case core.Event:
			record(slog.LevelInfo, "event", state.Durable.Version, "reason", e.Reason, "message", e.Message)
		case core.Reply:
			if e.Reason != "" {
				record(refusedLevel(in), "refused", state.Durable.Version, "reason", e.Reason, "message", e.Err)
			}
		case core.Refused:
			record(slog.LevelWarn, "refused", state.Durable.Version, "action", e.Action, "reason", e.Reason, "message", e.Message)
		}
	}
	for _, x := range []struct{ was, is core.Refusal }{{before.Refusal, state.Refusal}, {before.Blocked, state.Blocked}} {
		if x.is.Reason != "" && x.is.Reason != x.was.Reason {
			record(slog.LevelInfo, "refused", state.Durable.Version, "reason", x.is.Reason, "message", x.is.Message)
		}
	}
	if !told && len(did) > 0 {
		record(level, "effects", state.Saved.Version)
	}
}

// refusedLevel keeps the log readable: that a node which is up registers again is
// refused in the course of every start.
func refusedLevel(in core.Input) slog.Level {
	if c, ok := in.(core.Command); ok && (c.Verb == core.VerbAdd || c.Verb == core.VerbHello) {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}
