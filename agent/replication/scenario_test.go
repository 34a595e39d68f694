package replication

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/flarekv/flare/proto/topology"
)

// TestScenarios runs the transcripts in testdata/partition: what master, replicas
// and index do, in simulated time. Each line is something that happens; what it
// brings about is printed below it.
//
//	start n0 [n1...]      processes start; the first ever is made master
//	wait 300ms            time passes
//	write n0 key value    a client writes to a node, and waits for the answer
//	writes n0 count       that many, one after the other
//	offer n0 key value    a client writes and does not wait for the answer
//	kill n0 [n1...]       the process ends at once
//	part n0 n1, n0 index  they cannot reach each other; join n0 n1 lets them again
//	slow n0, quick n0     the disk takes its time, or not
//	purge n0              the node forgets its log
//	failover              the index takes the master for dead
//	claim n0 1/1          n0 tells the index that it is in sync by that grant
//	state                 where everybody is, and how replicas caught up last
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata/partition", func(t *testing.T, path string) {
		dir := simDir(t)
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1, dir)
			w.calm, w.sync = true, false
			defer w.end()
			datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
				s := &script{w: w}
				for line := range strings.Lines(d.Input) {
					if line = strings.TrimSpace(line); line != "" {
						s.line(t, line)
					}
				}
				return s.out.String()
			})
			if f := w.failed(); f != "" {
				t.Error(f)
			}
		})
	})
}

type script struct {
	w   *world
	out strings.Builder
}

func (s *script) line(t *testing.T, line string) {
	w := s.w
	fmt.Fprintln(&s.out, line)
	f := strings.Fields(line)
	bad := func(err error) {
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	node := func(i int) int {
		if i >= len(f) {
			bad(errors.New("a node is missing"))
		}
		n, err := strconv.Atoi(strings.TrimPrefix(f[i], "n"))
		if f[i] == "index" {
			return simIndexNode
		}
		bad(err)
		return n
	}
	proc := func() *simProc {
		w.mu.Lock()
		defer w.mu.Unlock()
		p := w.nodes[node(1)].proc
		if p == nil {
			bad(errors.New("the node is down"))
		}
		return p
	}
	locked := func(do func()) {
		w.mu.Lock()
		defer w.mu.Unlock()
		do()
	}
	answer := func(err error) string {
		switch {
		case err == nil:
			return "stored"
		case errors.Is(err, ErrTimeout), errors.Is(err, ErrNotMaster):
			return err.Error()
		}
		return "refused: " + err.Error()
	}
	switch f[0] {
	case "start":
		for i := range f[1:] {
			locked(func() { w.start(node(i + 1)) })
			time.Sleep(50 * time.Millisecond)
		}
	case "wait":
		d, err := time.ParseDuration(f[1])
		bad(err)
		time.Sleep(d)
	case "write":
		fmt.Fprintf(&s.out, "  %s\n", answer(proc().write(f[2], f[3])))
	case "writes":
		n, err := strconv.Atoi(f[2])
		bad(err)
		for i := range n {
			if err := proc().write(fmt.Sprint("many", i), "v"); err != nil {
				fmt.Fprintf(&s.out, "  write %d: %s\n", i, answer(err))
				break
			}
		}
	case "offer":
		p := proc()
		p.tasks.Go(func() { p.write(f[2], f[3]) })
	case "kill":
		for i := range f[1:] {
			locked(func() { w.crash(node(i+1), "killed") })
		}
	case "part", "join":
		locked(func() {
			if i, j := node(1), node(2); j == simIndexNode {
				w.parted[pair(i, j)] = f[0] == "part"
			} else {
				w.part(i, j, f[0] == "part")
			}
		})
	case "slow", "quick":
		locked(func() { w.nodes[node(1)].lazy = f[0] == "slow" })
	case "purge":
		p := proc()
		locked(func() { p.db.purge(p.db.pos.LSN.Index) })
	case "failover":
		locked(func() { w.failover("it is taken for dead") })
	case "claim":
		var epoch, session uint64
		_, err := fmt.Sscanf(f[2], "%d/%d", &epoch, &session)
		bad(err)
		if err := w.inSync(proc())(t.Context(), epoch, session); err != nil {
			fmt.Fprintf(&s.out, "  refused: %v\n", err)
		}
	case "state":
		s.state()
		return
	default:
		bad(errors.New("unknown command"))
	}
	synctest.Wait()
	s.events()
}

// events prints what happened since the last line.
func (s *script) events() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	for _, e := range s.w.trace {
		fmt.Fprintf(&s.out, "  %s\n", e[10:])
	}
	s.w.trace = nil
}

func (s *script) state() {
	w := s.w
	w.mu.Lock()
	procs := make([]*simProc, len(w.nodes))
	for i, n := range w.nodes {
		procs[i] = n.proc
	}
	w.mu.Unlock()
	for i, p := range procs {
		w.mu.Lock()
		disk, inSync, master := w.nodes[i].disk, w.x.active[i], w.x.master == i
		lsn := disk.pos.LSN
		w.mu.Unlock()
		fmt.Fprintf(&s.out, "  n%d %v", i, lsn)
		switch {
		case p == nil:
			s.out.WriteString(" down")
		case master:
			s.out.WriteString(" master")
			for _, r := range p.src.Replicas() {
				fmt.Fprintf(&s.out, ", %s", strings.TrimSuffix(r.Key, ":1"))
				if !r.Connected {
					s.out.WriteString(" away")
				}
				if r.InSync {
					s.out.WriteString(" waited for")
				}
				if r.LagBatches > 0 {
					fmt.Fprintf(&s.out, " lacks %d", r.LagBatches)
				}
			}
		case p.follower != nil:
			st := p.follower.Status()
			if !st.Connected {
				fmt.Fprintf(&s.out, " not connected (%s)", st.ErrorReason)
				break
			}
			fmt.Fprintf(&s.out, " follows %s by %v (%s)", strings.TrimSuffix(st.Master, ":1"), st.Tier, st.Reason)
			if st.Checkpoints > 0 {
				fmt.Fprintf(&s.out, ", %d copies", st.Checkpoints)
			}
			if st.Rewinds > 0 {
				fmt.Fprintf(&s.out, ", %d rewinds of %d keys", st.Rewinds, st.RewoundKeys)
			}
		}
		if inSync {
			s.out.WriteString(", in sync")
		}
		s.out.WriteString("\n")
	}
}

// TestLeaderScenarios runs the transcripts in testdata/leader: the state machine
// alone. What a line makes the leader ask for is printed below it, and up to where
// writes are acknowledged when that changes.
//
//	lead 2 b c:active          a map: epoch, slaves
//	committed 1/5
//	connect b 7 1/5            connection 7, which streams from 1/5 on
//	ack b 7 1/6, heard b 7, disconnect b 7
//	tick 500ms [1/6 2s]        time passes; somebody has been waiting for 1/6 for 2 s
//	behind b 1/0 yes|no        the index's answer
//	step-down
func TestLeaderScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata/leader", func(t *testing.T, path string) {
		d := newDrive(t)
		datadriven.RunTest(t, path, func(t *testing.T, td *datadriven.TestData) string {
			var out strings.Builder
			for line := range strings.Lines(td.Input) {
				if line = strings.TrimSpace(line); line == "" {
					continue
				}
				before := leaderState(&d.Leader)
				effects := leaderLine(t, d, line)
				fmt.Fprintln(&out, line)
				if effects != "" {
					fmt.Fprintf(&out, "  %s\n", effects)
				}
				if now := leaderState(&d.Leader); now != before {
					fmt.Fprintf(&out, "  %s\n", now)
				}
			}
			return out.String()
		})
	})
}

func leaderState(l *Leader) string {
	lsn, ok := l.Stable()
	if !ok {
		return "waits for nobody"
	}
	return fmt.Sprintf("acknowledged up to %v, in sync %v", lsn, l.InSync())
}

func leaderLine(t *testing.T, d *drive, line string) string {
	f := strings.Fields(line)
	lsn := func(s string) (l topology.LSN) {
		if _, err := fmt.Sscanf(s, "%d/%d", &l.Epoch, &l.Index); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		return l
	}
	num := func(s string) uint64 {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		return n
	}
	span := func(s string) time.Duration {
		n, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		return n
	}
	switch f[0] {
	case "lead":
		var members []Member
		for _, m := range f[2:] {
			key, state, _ := strings.Cut(m, ":")
			members = append(members, Member{Key: key, Active: state == "active"})
		}
		return d.text(d.lead(num(f[1]), members...))
	case "committed":
		d.Committed(lsn(f[1]))
	case "connect":
		at := lsn(f[3])
		return d.text(d.connect(f[1], num(f[2]), at.Epoch, at.Index))
	case "ack":
		return d.text(d.Ack(f[1], num(f[2]), lsn(f[3]), d.now))
	case "heard":
		d.Heard(f[1], num(f[2]), d.now)
	case "disconnect":
		d.Disconnect(f[1], num(f[2]))
	case "tick":
		d.now = d.now.Add(span(f[1]))
		var oldest topology.LSN
		since := d.now
		if len(f) > 2 {
			oldest, since = lsn(f[2]), d.now.Add(-span(f[3]))
		}
		return d.text(d.Tick(d.now, 2*second, oldest, since))
	case "behind":
		at := lsn(f[2])
		if !slices.Contains([]string{"yes", "no"}, f[3]) {
			t.Fatalf("%q: yes or no", line)
		}
		return d.text(d.BehindDone(Behind{f[1], at.Epoch, at.Index}, f[3] == "yes", d.now))
	case "step-down":
		d.StepDown()
	default:
		t.Fatalf("%q: unknown command", line)
	}
	return ""
}
