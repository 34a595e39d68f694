package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	"github.com/flarekv/flare/proto/topology"
)

func handOver(t *testing.T, n *testNode, target string) (*agentv1.Handover, error) {
	t.Helper()
	r, err := (&service{s: n.Server}).HandOverMaster(t.Context(), &agentv1.HandOverMasterRequest{Target: target})
	return r.GetHandover(), err
}

// refused checks that a call was refused for a reason.
func refused(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	got := ""
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			got = info.GetReason()
		}
	}
	if got != reason || status.Code(err) != code {
		t.Errorf("refused with %v, reason %q, want %v, %q", err, got, code, reason)
	}
}

// A steadyLoad writes counters through several nodes and takes no error.
type steadyLoad struct {
	t     *testing.T
	stop  chan struct{}
	wg    sync.WaitGroup
	mu    sync.Mutex
	last  []int // acknowledged by each client
	total int
	slow  time.Duration // longest wait for an answer
}

func startLoad(t *testing.T, clients int, nodes ...*testNode) *steadyLoad {
	l := &steadyLoad{t: t, stop: make(chan struct{}), last: make([]int, clients)}
	for w := range clients {
		c := dial(t, nodes[w%len(nodes)])
		l.wg.Go(func() {
			for i := 1; ; i++ {
				select {
				case <-l.stop:
					return
				default:
				}
				c.nc.SetDeadline(time.Now().Add(patience))
				began := time.Now()
				fmt.Fprintf(c.nc, "set w%d 0 0 %d\r\n%d\r\nincr n%d 1\r\n", w, len(fmt.Sprint(i)), i, w)
				for range 2 {
					line, err := c.r.ReadString('\n')
					if err != nil || strings.Contains(line, "ERROR") {
						t.Errorf("write %d of %d: %q, %v", i, w, line, err)
						return
					}
				}
				l.mu.Lock()
				l.last[w] = i
				l.total++
				l.slow = max(l.slow, time.Since(began))
				l.mu.Unlock()
			}
		})
	}
	t.Cleanup(func() { l.end() })
	return l
}

// more waits for so many further writes.
func (l *steadyLoad) more(n int) {
	l.t.Helper()
	l.mu.Lock()
	want := l.total + n
	l.mu.Unlock()
	eventually(l.t, "more writes", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.total < want {
			return fmt.Errorf("%d writes, want %d", l.total, want)
		}
		return nil
	})
}

func (l *steadyLoad) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.wg.Wait()
}

// TestHandoverUnderLoad gives a mastership away and takes it back, several times,
// while clients write through every node: nobody sees an error, and what was
// acknowledged is there on both sides.
func TestHandoverUnderLoad(t *testing.T) {
	x, nodes := twoPartitions(t, unhurried)
	load := startLoad(t, 4, nodes...)
	from, to := nodes[0], nodes[2]
	for round := range 6 {
		load.more(100)
		target := to.key()
		if round%2 == 1 {
			target = "" // there is only one
		}
		h, err := handOver(t, from, target)
		if err != nil {
			t.Fatal(err)
		}
		if h.GetFrom() != from.key() || h.GetTo() != to.key() || h.GetEpoch() != uint64(round+2) || h.GetLsn().GetEpoch() != uint64(round+1) ||
			h.GetPaused().AsDuration() <= 0 || len(h.GetPhases()) < 4 || h.GetReason() != "" {
			t.Errorf("handover %v", h)
		}
		to.settled(dutyMaster)
		inSync(t, x, from)
		if st := from.nodeStatus(); st.GetLastHandover().GetEpoch() != h.GetEpoch() || st.GetCatchUp().GetTier() != agentv1.Tier_TIER_WAL ||
			st.GetCatchUpCounts().GetCheckpoint()+st.GetCatchUpCounts().GetDump() != 0 {
			t.Errorf("the old master's status %v", st)
		}
		from, to = to, from
	}
	load.more(100)
	load.end()
	a, b := nodes[0].db.Position(), nodes[2].db.Position()
	if a.LSN != b.LSN || a.LSN.Epoch != 7 {
		t.Errorf("at %v and %v after six handovers", a.LSN, b.LSN)
	}
	for _, n := range nodes {
		c := dial(t, n)
		for w, last := range load.last {
			v := fmt.Sprint(last)
			c.ask(fmt.Sprintf("get w%d\r\n", w), fmt.Sprintf("VALUE w%d 0 %d\r\n%s\r\nEND\r\n", w, len(v), v))
		}
	}
	stats, _ := statsOf(dial(t, nodes[0]))
	if stats["handover_count"] != "3" || stats["handover_failed"] != "0" || stats["handover_last_pause_ms"] == "" {
		t.Errorf("stats: %s, %s failed, last pause %s", stats["handover_count"], stats["handover_failed"], stats["handover_last_pause_ms"])
	}
	t.Logf("%d writes, the slowest took %v", load.total, load.slow)
}

// TestHandoverRefused: what is not done, and that nothing has changed then.
func TestHandoverRefused(t *testing.T) {
	x, nodes := twoPartitions(t)
	master, slave, other := nodes[0], nodes[2], nodes[1]
	_, err := handOver(t, slave, "")
	refused(t, err, codes.FailedPrecondition, "not_master")
	for _, target := range []string{other.key(), "nobody:1", master.key()} {
		_, err = handOver(t, master, target)
		refused(t, err, codes.FailedPrecondition, "target_not_in_sync")
	}
	v := &service{s: master.Server}
	_, err = v.HandOverMaster(t.Context(), &agentv1.HandOverMasterRequest{Deadline: durationpb.New(time.Hour)})
	refused(t, err, codes.InvalidArgument, "bad_deadline")
	r, err := v.HandOverMaster(t.Context(), &agentv1.HandOverMasterRequest{DryRun: true})
	if h := r.GetHandover(); err != nil || h.GetTo() != slave.key() || h.GetEpoch() != 0 || h.GetPaused().AsDuration() != 0 {
		t.Errorf("dry run: %v, %v", h, err)
	}
	if x.asked != 0 || master.nodeStatus().GetLastHandover() != nil {
		t.Errorf("the index was asked %d times, status %v", x.asked, master.nodeStatus().GetLastHandover())
	}

	// The index has the last word; writes go on.
	x.mu.Lock()
	x.refusal = "target_not_in_sync"
	x.mu.Unlock()
	_, err = handOver(t, master, "")
	refused(t, err, codes.FailedPrecondition, "index_refused:target_not_in_sync")
	master.settled(dutyMaster)
	dial(t, master).ask("set a 0 0 1\r\nx\r\n", "STORED\r\n")
	if h := master.nodeStatus().GetLastHandover(); h.GetReason() != "index_refused:target_not_in_sync" || h.GetPaused().AsDuration() <= 0 {
		t.Errorf("status %v", h)
	}

	// A second one while the first is under way.
	x.mu.Lock()
	x.refusal, x.deaf = "", true
	x.mu.Unlock()
	first := make(chan error, 1)
	go func() {
		_, err := v.HandOverMaster(context.WithoutCancel(t.Context()), &agentv1.HandOverMasterRequest{})
		first <- err
	}()
	eventually(t, "a pause", func() error {
		if state, reason := master.gate.status(); state != gateWait || reason != "handover" {
			return fmt.Errorf("gate %d %s", state, reason)
		}
		return nil
	})
	_, err = handOver(t, master, "")
	refused(t, err, codes.Aborted, "already_running")
	x.mu.Lock()
	x.deaf = false
	x.mu.Unlock()
	if err := <-first; err != nil {
		t.Errorf("after the index answers again: %v", err)
	}
	slave.settled(dutyMaster)

	// Nobody is in sync.
	inSync(t, x, master)
	other.settled(dutyMaster)
	nodes[3].kill()
	x.down(nodes[3].key())
	eventually(t, "no replica", func() error {
		if other.source.Acknowledged(other.db.Position().LSN) && len(other.source.Replicas()) == 0 {
			return nil
		}
		return fmt.Errorf("replicas %+v", other.source.Replicas())
	})
	_, err = handOver(t, other, "")
	refused(t, err, codes.FailedPrecondition, "no_in_sync_replica")
}

// TestHandoverAnswerLost: the index made the replica the master, and neither its
// answer nor the map comes. Writes wait until it can be asked again.
func TestHandoverAnswerLost(t *testing.T) {
	x, nodes := twoPartitions(t, unhurried)
	master, slave := nodes[0], nodes[2]
	x.mu.Lock()
	x.lossy = 1
	x.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		_, err := (&service{s: master.Server}).HandOverMaster(context.WithoutCancel(t.Context()), &agentv1.HandOverMasterRequest{})
		done <- err
	}()
	eventually(t, "the index is asked", func() error {
		x.mu.Lock()
		defer x.mu.Unlock()
		if !x.deaf {
			return errors.New("not yet")
		}
		return nil
	})
	c := dial(t, master)
	fmt.Fprintf(c.nc, "set key2 0 0 1\r\nx\r\n")
	if state, reason := master.gate.status(); state != gateWait || reason != "handover" {
		t.Errorf("gate %d %s while the outcome is not known", state, reason)
	}
	// The next attempt is told that it is done, and then the map comes.
	x.mu.Lock()
	x.deaf = false
	x.mu.Unlock()
	eventually(t, "the index is asked again", func() error {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.asked < 2 {
			return fmt.Errorf("asked %d times", x.asked)
		}
		return nil
	})
	x.change(func() {})
	if err := <-done; err != nil {
		t.Error(err)
	}
	c.ask("", "STORED\r\n")
	slave.settled(dutyMaster)
	inSync(t, x, master)
	if a, b := master.db.Position().LSN, slave.db.Position().LSN; a != b || a.Epoch != 2 {
		t.Errorf("at %v and %v", a, b)
	}
}

// TestHandoverIndexGone: nobody could be asked, so nothing has happened, and writes
// that waited are executed here.
func TestHandoverIndexGone(t *testing.T) {
	x, nodes := twoPartitions(t, unhurried)
	master := nodes[0]
	x.listener.Close()
	done := make(chan error, 1)
	go func() {
		_, err := (&service{s: master.Server}).HandOverMaster(context.WithoutCancel(t.Context()), &agentv1.HandOverMasterRequest{})
		done <- err
	}()
	eventually(t, "a pause", func() error {
		if state, reason := master.gate.status(); state != gateWait || reason != "handover" {
			return fmt.Errorf("gate %d %s", state, reason)
		}
		return nil
	})
	dial(t, master).ask("set key2 0 0 1\r\nx\r\n", "STORED\r\n")
	refused(t, <-done, codes.Unavailable, "index_unreachable")
	if h := master.nodeStatus().GetLastHandover(); h.GetPaused().AsDuration() > master.failoverWait*3/4 {
		t.Errorf("writes waited %v of the %v that they can", h.GetPaused().AsDuration(), master.failoverWait)
	}
}

// TestLeaveHandsOver: a node that is told to stop hands its role over first; the
// index promotes nobody by itself.
func TestLeaveHandsOver(t *testing.T) {
	x, nodes := twoPartitions(t, unhurried)
	load := startLoad(t, 3, nodes[1:]...)
	load.more(50)
	nodes[0].stop()
	load.more(50)
	load.end()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.asked != 1 || x.epochs[0] != 2 {
		t.Errorf("%d handovers, epoch %d", x.asked, x.epochs[0])
	}
	if n := x.find(nodes[0].key()); n.State != topology.Down {
		t.Errorf("the node that left is %v", n.State)
	}
}

// TestLeaveWithAPlainIndex: without a handover the index finds a successor.
func TestLeaveWithAPlainIndex(t *testing.T) {
	x := newTestIndex(t)
	x.plain = true
	a, b := startNode(t, x, syncMode, unhurried), startNode(t, x, syncMode, unhurried)
	x.master(a.key(), 0)
	a.settled(dutyMaster)
	x.slave(b.key(), 0, 1)
	inSync(t, x, b)
	load := startLoad(t, 2, b)
	load.more(50)
	a.stop()
	b.settled(dutyMaster)
	load.more(50)
}
