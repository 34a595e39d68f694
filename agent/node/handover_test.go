package node

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/proto/topology"
)

// TestHandover runs the machine through transcripts: each line is what happens after
// so many milliseconds, and behind the arrow what the machine wants and where it is
// then. A view is given by what differs from that of a replica that is ready.
func TestHandover(t *testing.T) {
	for _, tt := range []struct {
		name   string
		script string
		reason string
		waited int // milliseconds
	}{
		{"in good order", `
			0 look leads insync lag=9000 -> nothing approaching
			100 look leads insync lag=300 -> nothing approaching
			10 look leads insync lag=200 -> pause pausing
			3 paused -> nothing draining
			1 look leads insync lag=2 -> nothing draining
			1 look leads insync drained -> ask asking
			1 look leads insync drained -> nothing asking
			5 agreed -> nothing switching
			1 look leads insync drained -> nothing switching
			4 look map=t@6 -> nothing done`, "", 16},
		{"the map is faster than the answer", `
			0 look leads insync drained -> pause pausing
			1 paused -> nothing draining
			0 look leads insync drained -> ask asking
			5 look leads map=t@6 -> nothing done
			1 agreed -> nothing done`, "", 6},
		{"the map moved on meanwhile", `
			0 look leads insync drained -> pause pausing
			1 paused -> nothing draining
			0 look leads insync drained -> ask asking
			5 agreed -> nothing switching
			5 look map=x@7 -> nothing done`, "", 11},
		{"the map does not come", `
			0 look leads insync drained -> pause pausing
			1 paused -> nothing draining
			0 look leads insync drained -> ask asking
			5 agreed -> nothing switching
			995 look leads insync drained -> nothing done`, "", 1001},

		{"the replica is too far behind", `
			0 look leads insync lag=9000 -> nothing approaching
			499 look leads insync lag=1000 -> nothing approaching
			1 look leads insync lag=1000 -> resume rolled_back`, "deadline", 0},
		{"the replica is lost before", `
			0 look leads insync lag=9000 -> nothing approaching
			1 look leads lag=9000 -> resume rolled_back`, "target_not_in_sync", 0},
		{"the role is lost before", `
			0 look insync lag=9000 -> resume rolled_back`, "not_master", 0},
		{"the role is lost when writes are to be paused", `
			0 look leads insync drained -> pause pausing
			1 unpaused -> resume rolled_back`, "not_master", 1},
		{"the replica is lost while it drains", `
			0 look leads insync lag=5 -> pause pausing
			1 paused -> nothing draining
			7 look leads lag=5 -> resume rolled_back`, "target_not_in_sync", 8},
		{"it drains for too long", `
			0 look leads insync lag=5 -> pause pausing
			1 paused -> nothing draining
			198 look leads insync lag=4 -> nothing draining
			1 look leads insync lag=4 -> resume rolled_back`, "deadline", 200},
		{"the role is lost while it drains", `
			0 look leads insync lag=5 -> pause pausing
			1 paused -> nothing draining
			1 look insync lag=5 -> resume rolled_back`, "not_master", 2},
		{"it is cancelled while it drains", `
			0 look leads insync lag=5 -> pause pausing
			1 paused -> nothing draining
			1 cancel -> resume rolled_back
			1 cancel -> nothing rolled_back`, "cancelled", 2},

		{"the index refuses", `
			0 look leads insync drained -> pause pausing
			1 paused -> nothing draining
			0 look leads insync drained -> ask asking
			5 refused target_not_in_sync -> resume rolled_back`, "index_refused:target_not_in_sync", 6},
		{"it is too late to cancel", `
			0 look leads insync drained -> pause pausing
			1 paused -> nothing draining
			0 look leads insync drained -> ask asking
			1 cancel -> nothing asking
			5 agreed -> nothing switching
			0 cancel -> nothing switching
			5 look map=t@6 -> nothing done`, "", 12},
		{"the index is never reached", `
			0 look leads insync drained -> pause pausing
			1 paused -> nothing draining
			0 look leads insync drained -> ask asking
			99 unsent -> nothing asking
			9 look leads insync drained -> nothing asking
			1 look leads insync drained -> ask asking
			50 unsent -> nothing asking
			10 look leads insync drained -> ask asking
			99 unsent -> nothing asking
			0 look leads insync drained -> resume rolled_back`, "index_unreachable", 269},
		{"the answer is lost, and asking again gets one", `
			0 look leads insync drained -> pause pausing
			1 paused -> nothing draining
			0 look leads insync drained -> ask asking
			500 unknown -> nothing asking
			10 look leads -> ask asking
			100 unsent -> nothing asking
			10 look leads -> ask asking
			5 agreed -> nothing switching
			5 look map=t@6 -> nothing done`, "", 631},
		{"the answer is lost, and the second one is no", `
			0 look leads insync drained -> pause pausing
			1 paused -> nothing draining
			0 look leads insync drained -> ask asking
			500 unknown -> nothing asking
			10 look leads -> ask asking
			5 refused stale_grant -> resume rolled_back`, "index_refused:stale_grant", 516},
		{"the answer is lost, and only a map tells that it was done", `
			0 look leads insync drained -> pause pausing
			1 paused -> nothing draining
			0 look leads insync drained -> ask asking
			500 unknown -> nothing asking
			300 look leads map=t@6 -> nothing done`, "", 801},
		{"the answer is lost, and somebody else is the master", `
			0 look leads insync drained -> pause pausing
			1 paused -> nothing draining
			0 look leads insync drained -> ask asking
			500 unknown -> nothing asking
			300 look map=x@6 -> resume rolled_back`, "not_master", 801},
		{"the answer is lost, and nobody ever tells", `
			0 look leads insync drained -> pause pausing
			1 paused -> nothing draining
			0 look leads insync drained -> ask asking
			500 unknown -> nothing asking
			10 look leads -> ask asking
			485 unsent -> nothing asking
			4 look leads -> nothing asking
			1 look leads -> resume rolled_back`, "index_unreachable", 1001},
		{"the index takes another for the master: nothing is written before a map tells", `
			0 look leads insync drained -> pause pausing
			1 paused -> nothing draining
			0 look leads insync drained -> ask asking
			5 refused stale_epoch -> nothing asking
			500 look leads -> nothing asking
			5 look map=x@7 -> resume rolled_back`, "index_refused:stale_epoch", 511},
		{"the index takes another for the master, and no map tells", `
			0 look leads insync drained -> pause pausing
			1 paused -> nothing draining
			0 look leads insync drained -> ask asking
			5 refused not_master -> nothing asking
			995 look leads -> resume rolled_back`, "index_refused:not_master", 1001},
		{"the node is relieved while the index cannot be reached", `
			0 look leads insync drained -> pause pausing
			1 paused -> nothing draining
			0 look leads insync drained -> ask asking
			5 unsent -> nothing asking
			5 look insync -> resume rolled_back`, "not_master", 11},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Unix(1000, 0)
			h := newHandover("t", 5, handoverLimits{
				approach: 500 * time.Millisecond, lag: 256, drain: 200 * time.Millisecond, ask: time.Second, retry: 10 * time.Millisecond,
			}, now)
			for line := range strings.Lines(strings.TrimSpace(tt.script)) {
				event, want, _ := strings.Cut(strings.TrimSpace(line), " -> ")
				var ms int
				var verb string
				if _, err := fmt.Sscan(event, &ms, &verb); err != nil {
					t.Fatalf("%s: %v", event, err)
				}
				now = now.Add(time.Duration(ms) * time.Millisecond)
				action := happen(t, h, verb, strings.Fields(event)[2:], now)
				if got := fmt.Sprint([]string{"nothing", "pause", "ask", "resume"}[action], " ", h.phase); got != want {
					t.Fatalf("%s: %s, want %s", event, got, want)
				}
			}
			if !h.over() || h.reason != tt.reason {
				t.Errorf("ended in %s with reason %q, want %q", h.phase, h.reason, tt.reason)
			}
			if got := h.waited(now.Add(time.Hour)); got != time.Duration(tt.waited)*time.Millisecond {
				t.Errorf("writes waited %v, want %d ms", got, tt.waited)
			}
			var sum time.Duration
			for _, s := range h.passed {
				sum += s.took
			}
			if want := h.endedAt.Sub(h.begunAt); sum != want {
				t.Errorf("phases %v take %v together, want %v", h.passed, sum, want)
			}
		})
	}
}

func happen(t *testing.T, h *handover, verb string, args []string, now time.Time) handoverAction {
	t.Helper()
	switch verb {
	case "look":
		v := handoverView{master: "m", epoch: 5}
		for _, arg := range args {
			name, value, _ := strings.Cut(arg, "=")
			switch name {
			case "leads":
				v.leads = true
			case "insync":
				v.inSync = true
			case "drained":
				v.drained = true
			case "lag":
				fmt.Sscan(value, &v.lag)
			case "map":
				var epoch string
				v.master, epoch, _ = strings.Cut(value, "@")
				fmt.Sscan(epoch, &v.epoch)
			default:
				t.Fatalf("look: %q", arg)
			}
		}
		return h.look(v, now)
	case "paused":
		h.paused(topology.LSN{Epoch: 5, Index: 7}, now)
		return handoverNothing
	case "unpaused":
		return h.unpaused(now)
	case "cancel":
		return h.cancel(now)
	case "agreed":
		return h.answered(handoverAgreed, "", now)
	case "refused":
		return h.answered(handoverRefused, args[0], now)
	case "unsent":
		return h.answered(handoverUnsent, "", now)
	case "unknown":
		return h.answered(handoverUnknown, "", now)
	}
	t.Fatalf("unknown %q", verb)
	return 0
}

func TestHandoverTarget(t *testing.T) {
	replicas := []replication.ReplicaStatus{
		{Key: "a", Connected: true, InSync: true, LagBatches: 3},
		{Key: "b", Connected: true, InSync: true, LagBatches: 1},
		{Key: "c", Connected: true, InSync: true},                // the index does not know yet
		{Key: "d", Connected: true},                              // catches up
		{Key: "e", InSync: true},                                 // lost a moment ago
		{Key: "f", Connected: true, InSync: true, LagBatches: 1}, // like b
	}
	members := []replication.Member{{Key: "a", Active: true}, {Key: "b", Active: true}, {Key: "c"}, {Key: "d"}, {Key: "e", Active: true}, {Key: "f", Active: true}}
	for _, tt := range []struct {
		named, want, reason string
		from                int
	}{
		{named: "", want: "b"},
		{named: "a", want: "a"},
		{named: "c", reason: "target_not_in_sync"},
		{named: "d", reason: "target_not_in_sync"},
		{named: "e", reason: "target_not_in_sync"},
		{named: "x", reason: "target_not_in_sync"},
		{named: "", from: 6, reason: "no_in_sync_replica"},
	} {
		got, reason := handoverTarget(replicas[tt.from:], members, tt.named)
		if got.Key != tt.want || reason != tt.reason {
			t.Errorf("named %q: %q, %q, want %q, %q", tt.named, got.Key, reason, tt.want, tt.reason)
		}
	}
}
