package replication

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

const second = time.Second

// drive runs a leader with a clock that only moves when told to.
type drive struct {
	Leader
	t   *testing.T
	now time.Time
}

func newDrive(t *testing.T) *drive { return &drive{t: t, now: time.Unix(1000, 0)} }

func (d *drive) text(effects []Effect) string {
	var s []string
	for _, e := range effects {
		switch {
		case e.Grant != nil && e.Behind == nil:
			s = append(s, fmt.Sprintf("grant %s@%d %d/%d", e.Grant.Key, e.Grant.Conn, e.Grant.Epoch, e.Grant.Session))
		case e.Behind != nil && e.Grant == nil:
			s = append(s, fmt.Sprintf("behind %s %d/%d", e.Behind.Key, e.Behind.Epoch, e.Behind.Session))
		default:
			d.t.Fatalf("effect %+v", e)
		}
	}
	return strings.Join(s, ", ")
}

func (d *drive) want(effects []Effect, want string) {
	d.t.Helper()
	if got := d.text(effects); got != want {
		d.t.Errorf("effects %q, want %q", got, want)
	}
}

func (d *drive) wantStable(want string) {
	d.t.Helper()
	got := "any"
	if lsn, ok := d.Stable(); ok {
		got = lsn.String()
	}
	if got != want {
		d.t.Errorf("stable %s, want %s", got, want)
	}
}

func (d *drive) lead(epoch uint64, members ...Member) []Effect { return d.Lead(epoch, members, d.now) }
func (d *drive) connect(key string, conn, epoch, index uint64) []Effect {
	d.Connect(key, conn, d.now)
	return d.Streams(key, conn, at(epoch, index), d.now)
}
func (d *drive) ack(key string, conn, epoch, index uint64) []Effect {
	return d.Ack(key, conn, at(epoch, index), d.now)
}
func (d *drive) tick(after time.Duration) []Effect {
	d.now = d.now.Add(after)
	return d.Tick(d.now, 2*second, topology.LSN{}, time.Time{})
}

func at(epoch, index uint64) topology.LSN { return topology.LSN{Epoch: epoch, Index: index} }

func TestLeaderGrantsWhenCaughtUp(t *testing.T) {
	d := newDrive(t)
	d.Committed(at(1, 5000))
	d.want(d.lead(1, Member{Key: "b"}), "")
	d.wantStable("any")
	d.want(d.connect("b", 7, 1, 10), "") // far behind: nobody waits for it
	d.wantStable("any")
	d.want(d.ack("b", 7, 1, 4500), "") // close: it is waited for, but not granted
	d.wantStable("1/4500")
	d.Committed(at(1, 6000))
	d.want(d.ack("b", 7, 1, 4999), "")
	d.want(d.ack("b", 7, 1, 5000), "grant b@7 1/1") // has all that was committed before
	d.want(d.ack("b", 7, 1, 5001), "")
	d.wantStable("1/5001")
	if got := d.InSync(); !slices.Equal(got, []string{"b"}) {
		t.Errorf("in sync: %v", got)
	}
	// The map follows, nothing changes.
	d.want(d.lead(1, Member{Key: "b", Active: true}), "")
	d.wantStable("1/5001")
}

func TestLeaderIgnoresWhatIsNotOfTheConnection(t *testing.T) {
	d := newDrive(t)
	d.Committed(at(1, 5))
	d.lead(1, Member{Key: "b", Active: true})
	d.wantStable("0/0")
	d.Connect("b", 1, d.now)
	d.want(d.ack("b", 1, 1, 5), "") // does not stream yet
	d.wantStable("0/0")
	d.Connect("b", 2, d.now)
	d.want(d.Streams("b", 1, at(1, 5), d.now), "") // the older connection
	d.Disconnect("b", 1)
	d.wantStable("0/0")
	d.Streams("b", 2, at(1, 4), d.now)
	d.wantStable("1/4")
	d.want(d.ack("b", 2, 1, 3), "") // never backwards
	d.wantStable("1/4")
	d.want(d.ack("x", 2, 1, 3), "")
	d.want(d.BehindDone(Behind{Key: "x", Epoch: 1}, true, d.now), "")
}

func TestLeaderWaitsForWhomTheMapShows(t *testing.T) {
	d := newDrive(t)
	d.Committed(at(3, 9))
	d.lead(3, Member{Key: "b", Active: true}, Member{Key: "c"})
	d.wantStable("0/0") // never connected, but may be promoted
	d.want(d.tick(second), "")
	d.want(d.tick(second), "behind b 3/0")
	d.want(d.tick(second), "") // asked already
	d.want(d.BehindDone(Behind{"b", 3, 0}, false, d.now), "")
	d.wantStable("0/0")
	d.want(d.tick(0), "behind b 3/0")
	d.want(d.BehindDone(Behind{"b", 3, 0}, true, d.now), "")
	d.wantStable("any")
	// A map from before the index answered costs nothing but waiting.
	d.lead(3, Member{Key: "b", Active: true}, Member{Key: "c"})
	d.wantStable("0/0")
	d.lead(3, Member{Key: "b"}, Member{Key: "c"})
	d.wantStable("any")
}

func TestLeaderEndsGrants(t *testing.T) {
	d := newDrive(t)
	d.Committed(at(1, 1))
	d.lead(1, Member{Key: "b"})
	d.want(d.connect("b", 1, 1, 1), "grant b@1 1/1")
	// The claim may be under way to the index, so the grant binds us, whatever
	// the map says and whether it is connected.
	d.lead(1)
	d.Disconnect("b", 1)
	d.wantStable("1/1")
	d.want(d.tick(0), "behind b 1/1") // not active in the map: no reason to wait
	d.want(d.BehindDone(Behind{"b", 1, 1}, true, d.now), "")
	d.wantStable("any")
	if len(d.members) != 0 {
		t.Errorf("members %+v", d.members)
	}
}

func TestLeaderAnswerToAnOlderSession(t *testing.T) {
	d := newDrive(t)
	d.Committed(at(1, 1))
	d.lead(1, Member{Key: "b"})
	d.want(d.connect("b", 1, 1, 1), "grant b@1 1/1")
	d.Disconnect("b", 1)
	d.want(d.tick(0), "behind b 1/1")
	d.want(d.connect("b", 2, 1, 1), "grant b@2 1/2") // meanwhile it came back
	d.want(d.BehindDone(Behind{"b", 1, 1}, true, d.now), "")
	d.wantStable("1/1") // the second grant still binds
}

func TestLeaderGrantsAnewWhenTheMapChanges(t *testing.T) {
	d := newDrive(t)
	d.Committed(at(1, 1))
	d.lead(1, Member{Key: "b"})
	d.want(d.connect("b", 1, 1, 1), "grant b@1 1/1")
	d.want(d.lead(1, Member{Key: "b"}), "") // the claim is under way
	d.want(d.lead(1, Member{Key: "b", Active: true}), "")
	d.want(d.lead(1, Member{Key: "b"}), "grant b@1 1/2")
}

func TestLeaderNeedsNoGrantForTheActive(t *testing.T) {
	d := newDrive(t)
	d.Committed(at(1, 1))
	d.lead(1, Member{Key: "b", Active: true})
	d.want(d.connect("b", 1, 1, 1), "")
	d.want(d.lead(1, Member{Key: "b"}), "grant b@1 1/1")
}

func TestLeaderGrantsOnlySlaves(t *testing.T) {
	d := newDrive(t)
	d.Committed(at(1, 1))
	d.lead(1)
	d.want(d.connect("b", 1, 1, 1), "")
	d.want(d.lead(1, Member{Key: "b"}), "grant b@1 1/1")
}

func TestLeaderNewEpochVoidsGrants(t *testing.T) {
	d := newDrive(t)
	d.Committed(at(1, 1))
	d.lead(1, Member{Key: "b"})
	d.want(d.connect("b", 1, 1, 1), "grant b@1 1/1")
	d.Committed(at(2, 2))
	d.want(d.lead(2, Member{Key: "b"}), "")
	d.wantStable("1/1") // joining
	d.want(d.ack("b", 1, 2, 2), "grant b@1 2/1")
	d.StepDown()
	if d.Leading() != 0 || len(d.members) != 0 {
		t.Error("did not step down")
	}
	d.want(d.tick(second), "")
}

func TestLeaderLeavesBehindWhoIsSlow(t *testing.T) {
	d := newDrive(t)
	d.Committed(at(1, 10))
	d.lead(1, Member{Key: "b", Active: true}, Member{Key: "c", Active: true})
	d.connect("b", 1, 1, 10)
	d.connect("c", 2, 1, 5)
	since := d.now
	overdue := func(after time.Duration) []Effect {
		d.now = d.now.Add(after)
		d.Heard("b", 1, d.now)
		d.Heard("c", 2, d.now)
		return d.Tick(d.now, 2*second, at(1, 6), since)
	}
	d.want(overdue(second), "")
	d.want(overdue(second), "behind c 1/0") // b has what is waited for
	d.want(d.BehindDone(Behind{"c", 1, 0}, true, d.now), "")
	d.wantStable("1/10")
	d.lead(1, Member{Key: "b", Active: true}, Member{Key: "c"})

	// It must not make everybody wait again at once.
	d.want(d.ack("c", 2, 1, 9), "")
	d.wantStable("1/10")
	d.Heard("b", 1, d.now.Add(restFactor*2*second))
	d.Heard("c", 2, d.now.Add(restFactor*2*second))
	d.want(d.tick(restFactor*2*second), "")
	d.wantStable("1/9")
	d.want(d.ack("c", 2, 1, 10), "grant c@2 1/1")
}

func TestLeaderDropsWhoCannotJoin(t *testing.T) {
	d := newDrive(t)
	d.Committed(at(1, 10))
	d.lead(1, Member{Key: "b"})
	d.connect("b", 1, 1, 5)
	d.wantStable("1/5")
	since := d.now
	d.now = d.now.Add(2 * second)
	d.Heard("b", 1, d.now)
	// Nothing was granted, so the index need not be asked.
	d.want(d.Tick(d.now, 2*second, at(1, 6), since), "")
	d.wantStable("any")
}

// simulation runs nodes, their logs, the index and the messages between them in
// random order. A log is a list of batches, each named by its LSN; a promotion
// takes any node that the index has as active.
type simulation struct {
	*testing.T
	r     *rand.Rand
	now   time.Time
	nodes []*simNode

	// The index.
	epoch   uint64
	master  int
	active  []bool
	floor   []uint64 // session, of the current epoch
	mapSeen []int    // position in maps that a node knows
	maps    []simMap

	claims  []simClaim  // on their way to the index
	behinds []simBehind // on their way to the index
	answers []simAnswer // on their way to a master
	connSeq uint64

	acked []topology.LSN // by a master to its clients
}

type simNode struct {
	log    []topology.LSN
	leader Leader
	waits  []topology.LSN
	follow int // node it is connected to, -1 for none
	conn   uint64
}

type simMap struct {
	epoch  uint64
	master int
	active []bool
}

type simClaim struct {
	node           int
	epoch, session uint64
}

type simBehind struct {
	from int
	b    Behind
}

type simAnswer struct {
	simBehind
	agreed bool
}

func simKey(i int) string { return fmt.Sprint("n", i) }

func (s *simulation) head(i int) topology.LSN {
	if l := s.nodes[i].log; len(l) > 0 {
		return l[len(l)-1]
	}
	return topology.LSN{}
}

func (s *simulation) publish() {
	s.maps = append(s.maps, simMap{s.epoch, s.master, slices.Clone(s.active)})
}

func (s *simulation) perform(i int, effects []Effect) {
	for _, e := range effects {
		if e.Behind != nil {
			s.behinds = append(s.behinds, simBehind{i, *e.Behind})
			continue
		}
		// The frame arrives or is lost with the connection.
		for n, node := range s.nodes {
			if simKey(n) == e.Grant.Key && node.follow == i && node.conn == e.Grant.Conn && s.r.IntN(10) > 0 {
				s.claims = append(s.claims, simClaim{n, e.Grant.Epoch, e.Grant.Session})
			}
		}
	}
}

// answer lets a master answer its clients.
func (s *simulation) answer(i int) {
	n := s.nodes[i]
	stable, any := n.leader.Stable()
	n.waits = slices.DeleteFunc(n.waits, func(l topology.LSN) bool {
		if any && stable.Less(l) {
			return false
		}
		s.acked = append(s.acked, l)
		return true
	})
}

// deliverMap lets a node see the next map.
func (s *simulation) deliverMap(i int) {
	if s.mapSeen[i] == len(s.maps) {
		return
	}
	m := s.maps[s.mapSeen[i]]
	s.mapSeen[i]++
	n := s.nodes[i]
	if m.master != i {
		n.leader.StepDown()
		n.waits = nil
		return
	}
	if s.head(i).Epoch < m.epoch {
		// A promoted node stops to follow before it begins its epoch.
		s.disconnect(i)
		n.log = append(n.log, at(m.epoch, uint64(len(n.log)+1)))
	}
	n.leader.Committed(s.head(i))
	var members []Member
	for k := range s.nodes {
		if k != i {
			members = append(members, Member{simKey(k), m.active[k]})
		}
	}
	s.perform(i, n.leader.Lead(m.epoch, members, s.now))
	s.answer(i)
}

func (s *simulation) disconnect(i int) {
	n := s.nodes[i]
	if n.follow >= 0 {
		m := s.nodes[n.follow]
		m.leader.Disconnect(simKey(i), n.conn)
		s.answer(n.follow)
		n.follow = -1
	}
}

func (s *simulation) connect(i int) {
	seen := s.mapSeen[i]
	if seen == 0 {
		return
	}
	master := s.maps[seen-1].master
	n, m := s.nodes[i], s.nodes[master]
	if master == i || m.leader.Leading() == 0 || n.leader.Leading() != 0 || s.head(master).Epoch < s.head(i).Epoch {
		return
	}
	s.disconnect(i)
	s.connSeq++
	n.follow, n.conn = master, s.connSeq
	m.leader.Connect(simKey(i), n.conn, s.now)
	common := 0
	for common < len(n.log) && common < len(m.log) && n.log[common] == m.log[common] {
		common++
	}
	if common < len(n.log) {
		n.log = slices.Clone(m.log) // a full copy
	}
	m.leader.Committed(s.head(master))
	s.perform(master, m.leader.Streams(simKey(i), n.conn, s.head(i), s.now))
	s.answer(master)
}

func (s *simulation) step() {
	i := s.r.IntN(len(s.nodes))
	n := s.nodes[i]
	switch s.r.IntN(12) {
	case 0:
		s.deliverMap(i)
	case 1, 2: // a client writes
		if e := n.leader.Leading(); e != 0 {
			lsn := at(e, uint64(len(n.log)+1))
			n.log = append(n.log, lsn)
			n.leader.Committed(lsn)
			n.waits = append(n.waits, lsn)
			s.answer(i)
		}
	case 3, 4, 5: // a batch and its acknowledgement
		if n.follow >= 0 {
			m := s.nodes[n.follow]
			if len(n.log) < len(m.log) {
				n.log = append(n.log, m.log[len(n.log)])
			}
			if s.r.IntN(3) > 0 {
				s.perform(n.follow, m.leader.Ack(simKey(i), n.conn, s.head(i), s.now))
				s.answer(n.follow)
			}
		}
	case 6:
		s.connect(i)
	case 7:
		if s.r.IntN(3) == 0 {
			s.disconnect(i)
		}
	case 8: // time passes
		s.now = s.now.Add(time.Duration(s.r.IntN(1500)) * time.Millisecond)
		var oldest topology.LSN
		if len(n.waits) > 0 {
			oldest = n.waits[0]
		}
		s.perform(i, n.leader.Tick(s.now, 2*second, oldest, s.now.Add(-3*second)))
		s.answer(i)
	case 9: // the index hears a claim; it may also get lost, or come twice
		if len(s.claims) > 0 {
			k := s.r.IntN(len(s.claims))
			c := s.claims[k]
			if s.r.IntN(3) > 0 {
				s.claims = slices.Delete(s.claims, k, k+1)
			}
			if c.epoch == s.epoch && c.node != s.master && c.session > s.floor[c.node] && s.r.IntN(4) > 0 {
				s.active[c.node] = true
				s.publish()
			}
		}
	case 10: // the index hears that somebody is behind
		if len(s.behinds) > 0 {
			k := s.r.IntN(len(s.behinds))
			b := s.behinds[k]
			s.behinds = slices.Delete(s.behinds, k, k+1)
			var node int
			fmt.Sscanf(b.b.Key, "n%d", &node)
			agreed := b.b.Epoch == s.epoch && b.from == s.master
			if agreed {
				s.active[node] = false
				s.floor[node] = max(s.floor[node], b.b.Session)
				s.publish()
			}
			s.answers = append(s.answers, simAnswer{b, agreed})
		} else if len(s.answers) > 0 {
			a := s.answers[0]
			s.answers = s.answers[1:]
			if s.r.IntN(4) == 0 {
				a.agreed = false // the answer got lost
			}
			s.perform(a.from, s.nodes[a.from].leader.BehindDone(a.b, a.agreed, s.now))
			s.answer(a.from)
		}
	case 11: // the index promotes somebody, or takes somebody for dead
		if s.r.IntN(8) > 0 {
			return
		}
		if s.r.IntN(2) == 0 {
			if i != s.master {
				s.active[i] = false
				s.publish()
			}
			return
		}
		if s.active[i] && i != s.master {
			s.epoch++
			s.active[s.master] = false
			s.active[i] = false
			s.master = i
			clear(s.floor)
			s.publish()
		}
	}
}

// check looks for a write that a client was told of and that a promotion could lose.
func (s *simulation) check() {
	for i := range s.nodes {
		if i != s.master && !s.active[i] {
			continue
		}
		have := s.nodes[i].log
		for _, l := range s.acked {
			if uint64(len(have)) < l.Index || have[l.Index-1] != l {
				s.Fatalf("%v was answered well, but n%d (master %v, active %v) has not got it", l, i, i == s.master, s.active[i])
			}
		}
	}
}

func TestLeaderNeverLosesAnAcknowledgedWrite(t *testing.T) {
	runs, steps := 300, 1500
	if testing.Short() {
		runs = 30
	}
	var answered, grants, promotions, left uint64
	for seed := range runs {
		s := &simulation{T: t, r: rand.New(rand.NewPCG(uint64(seed), 1)), now: time.Unix(1000, 0), epoch: 1}
		const nodes = 3
		s.active, s.floor, s.mapSeen = make([]bool, nodes), make([]uint64, nodes), make([]int, nodes)
		for range nodes {
			s.nodes = append(s.nodes, &simNode{follow: -1})
		}
		s.publish()
		s.deliverMap(0)
		for range steps {
			s.step()
			s.check()
		}
		answered += uint64(len(s.acked))
		promotions += s.epoch - 1
		grants += s.nodes[s.master].leader.session
		for _, f := range s.floor {
			left += f
		}
	}
	// The runs must have got somewhere.
	if answered < uint64(runs)*10 || grants == 0 || promotions < uint64(runs)/10 || left == 0 {
		t.Errorf("%d writes answered, %d grants, %d promotions, floors %d", answered, grants, promotions, left)
	}
	t.Logf("%d writes answered, %d grants, %d promotions, floors %d", answered, grants, promotions, left)
}
