package core

import (
	"reflect"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

// TestTry compares what a command would bring about with what it does, also while
// something else is being saved or cannot be.
func TestTry(t *testing.T) {
	for _, persist := range []string{"auto", "hold", "fail"} {
		t.Run(persist, func(t *testing.T) {
			w := newScenario(t)
			for _, l := range []string{"spec partitions=1 replicas=2", "members 2 a:1 b:1", "join a:1", "join b:1", "state b:1 active 1/1",
				"persist " + persist, "add c:1"} {
				w.line(l)
			}
			before := w.state.Clone()
			c := Command{ID: 77, Verb: VerbState, Name: "a", Port: 1, State: topology.Down}
			tried := Try(w.state, c)
			if !reflect.DeepEqual(before, w.state) {
				t.Fatal("the state was changed")
			}
			_, effects := Step(w.state, c)
			var done Outcome
			done.Take(effects)
			if !reflect.DeepEqual(tried.Decisions, done.Decisions) || !reflect.DeepEqual(tried.Events, done.Events) {
				t.Errorf("would do\n%+v\n%+v\ndid\n%+v\n%+v", tried.Decisions, tried.Events, done.Decisions, done.Events)
			}
			if len(tried.Decisions) != 2 || tried.Reply.ID != tryID || tried.Reply.Reason != "" {
				t.Errorf("%d decisions, reply %+v", len(tried.Decisions), tried.Reply)
			}
			c.Name = "x"
			if o := Try(w.state, c); o.Reply.Reason != RefuseNoSuchNode || o.Reply.Err == "" || len(o.Decisions) > 0 {
				t.Errorf("of nobody: %+v", o)
			}
		})
	}
}
