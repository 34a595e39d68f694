package model

import (
	"slices"
	"strconv"
	"time"

	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// hear gives a node a map, as a push does; false when it has a later one.
func (w *World) hear(i int, m topology.Map, plain bool) bool {
	n := &w.Nodes[i]
	if n.Map.Version > m.Version {
		return false
	}
	if w.m.Grows {
		n.Width, n.Yield = layoutOf(w.m.keys[i], m, n.Map, n.Yield)
	}
	n.Map, n.Plain = m, plain
	w.checkMap(i)
	w.act(i)
	return true
}

// duty is what the map asks of a node.
func (w *World) duty(i int) duty {
	n := &w.Nodes[i]
	own, known := n.Map.Find(w.m.keys[i])
	if !known || own.Partition < 0 {
		return duty{partition: topology.NoPartition}
	}
	return dutyOf(w.m.keys[i], n.Map, n.Plain)
}

// act brings a node in line with its map.
func (w *World) act(i int) {
	n := &w.Nodes[i]
	if !n.Up || n.Frozen || n.Stage < Said {
		return
	}
	d := w.duty(i)
	if d.kind != dutyFill {
		n.Fill = Filling{}
	}
	switch d.kind {
	case dutyMaster:
		w.leadPartition(i, d)
	case dutyFill:
		w.fill(i, d)
	case dutySlave:
		if n.To != 0 && w.m.keys[n.To-1] != d.master {
			w.unfollow(i)
		}
		w.resign(i)
	default:
		w.unfollow(i)
		w.resign(i)
	}
}

// leadPartition takes up the duty of a master, or goes on with it.
func (w *World) leadPartition(i int, d duty) {
	n := &w.Nodes[i]
	held := tenure{held: n.Held, partition: n.Tenure.Partition, granted: n.Tenure.Epoch, epoch: n.Tenure.Epoch}
	p := promote(d, held, n.Pos.LSN.Epoch, n.partition())
	switch {
	case p.refusal != "":
		w.log("    node   %s must not write: %s", w.m.keys[i], p.refusal)
		w.unfollow(i)
		w.resign(i)
		return
	case p.begin:
		if n.Promise.left(d.partition, d.epoch, w.Now) > 0 {
			return
		}
		w.unfollow(i)
		w.resign(i)
		w.begin(i, d, p.epoch)
	}
	n.Held, n.Tenure = true, Tenure{d.partition, p.epoch}
	n.Lead.Committed(n.Pos.LSN)
	w.perform(i, n.Lead.Lead(p.epoch, d.members, w.time()))
	if n.Hand.To != 0 && n.Hand.Epoch != p.epoch {
		n.Hand = Hand{}
	}
	if n.Hand.To == 0 && !n.Open {
		w.open(i)
	}
	w.answer(i)
}

// open lets writes in, once there is a lease.
func (w *World) open(i int) {
	n := &w.Nodes[i]
	n.Open, n.Opened, n.Until = true, w.Now, 0
}

// begin writes the start of an epoch.
func (w *World) begin(i int, d duty, epoch uint64) {
	n := &w.Nodes[i]
	w.checkBegin(i, d.partition, epoch)
	if n.Pos.History == "" || !n.Pos.Restored.IsZero() {
		n.Pos.History = "h" + strconv.Itoa(d.partition) + "." + strconv.FormatUint(epoch, 10)
		n.Pos.Restored = topology.LSN{}
	}
	n.Pos.LSN = topology.LSN{Epoch: epoch, Index: n.Pos.LSN.Index + 1}
	n.Pos.Lineage = n.Pos.StartEpoch(history.EpochStart{Epoch: epoch, Index: n.Pos.LSN.Index})
	n.Pos.Partition = d.partition
	w.log("    node   %s begins epoch %d of partition %d at %v", w.m.keys[i], epoch, d.partition, n.Pos.LSN)
}

// resign ends a mastership.
func (w *World) resign(i int) {
	n := &w.Nodes[i]
	n.Open, n.Opened, n.Until, n.Asked = false, 0, 0, 0
	n.Hand = Hand{}
	if !n.Held {
		return
	}
	n.Held, n.Tenure = false, Tenure{}
	n.Lead.StepDown()
	n.Asks, n.Waiting, n.Conns = nil, nil, 0
	for r := range w.Nodes {
		if w.Nodes[r].To == i+1 {
			w.Nodes[r].To, w.Nodes[r].Conn = 0, 0
		}
	}
}

// unfollow ends a replica's connection.
func (w *World) unfollow(i int) {
	n := &w.Nodes[i]
	if n.To != 0 {
		m := &w.Nodes[n.To-1]
		if m.Held {
			m.Lead.Disconnect(w.m.keys[i], n.Conn)
		}
	}
	n.To, n.Conn, n.Claim, n.Claimed = 0, 0, core.Grant{}, false
}

// linked reports whether two nodes can talk.
func (w *World) linked(a, b int) bool {
	x, y := &w.Nodes[a], &w.Nodes[b]
	return x.Up && y.Up && !x.Frozen && !y.Frozen && !x.Apart && !y.Apart
}

// writable reports whether a node would execute a write of a client now.
func (n *Node) writable(now int64) bool { return n.Up && n.Held && n.Open && now < n.Until }

// perform carries out what a master's leader wants.
func (w *World) perform(i int, effects []replication.Effect) {
	for _, e := range effects {
		switch {
		case e.Grant != nil:
			r := w.index(e.Grant.Key)
			if n := &w.Nodes[r]; n.To == i+1 && n.Conn == e.Grant.Conn && w.linked(i, r) {
				w.log("    grant  %s is in sync with %s, %d/%d", e.Grant.Key, w.m.keys[i], e.Grant.Epoch, e.Grant.Session)
				n.Claim, n.Claimed = core.Grant{Epoch: e.Grant.Epoch, Session: e.Grant.Session}, false
			}
		case e.Behind != nil:
			w.ask(i, *e.Behind)
		case e.LeaseAsk != nil:
			w.promise(i, *e.LeaseAsk)
		}
	}
}

func (w *World) ask(i int, b replication.Behind) {
	n := &w.Nodes[i]
	if !slices.ContainsFunc(n.Asks, func(a Ask) bool { return a.Key == b.Key }) {
		n.Asks = append(n.Asks, Ask{Key: b.Key, Epoch: b.Epoch, Session: b.Session})
	}
}

// answer tells clients of the writes that every replica in sync has.
func (w *World) answer(i int) {
	n := &w.Nodes[i]
	stable, some := n.Lead.Stable()
	for len(n.Waiting) > 0 {
		lsn := n.Waiting[0].LSN
		if some && stable.Less(lsn) {
			return
		}
		w.log("    answer a client at %s: %v is written", w.m.keys[i], lsn)
		p := &w.Parts[n.Tenure.Partition]
		p.Acked = append(slices.Clip(p.Acked), lsn)
		n.Waiting = n.Waiting[1:]
	}
	n.Waiting = nil
}

// canConnect tells whether a replica can come to its master, and who that is.
func (w *World) canConnect(r int) (int, bool) {
	n := &w.Nodes[r]
	if !n.Up || n.Frozen || n.Stage < Said || n.To != 0 || n.Refused == w.Now {
		return 0, false
	}
	d := w.duty(r)
	m := w.index(d.master)
	if d.kind != dutySlave || m < 0 || !w.linked(r, m) || !w.Nodes[m].Held || w.Nodes[m].Tenure.Partition != d.partition {
		return 0, false
	}
	choice := w.choose(r, m)
	if choice.Tier == history.TierRewind || choice.Tier == history.TierCheckpoint {
		asked := slices.ContainsFunc(w.Nodes[m].Asks, func(a Ask) bool { return a.Key == w.m.keys[r] })
		return m, !asked
	}
	return m, choice.Tier == history.TierWAL
}

// choose tells how a replica catches up with a master, which keeps all of its log.
func (w *World) choose(r, m int) history.Choice {
	return history.Choose(w.Nodes[m].Pos, 1, history.Peer{Position: w.Nodes[r].Pos, Rewind: true})
}

// connect lets a replica catch up with its master as far as the first exchange goes.
func (w *World) connect(r int) {
	m, ok := w.canConnect(r)
	if !ok {
		return
	}
	n, master := &w.Nodes[r], &w.Nodes[m]
	key := w.m.keys[r]
	choice := w.choose(r, m)
	w.log("    node   %s at %v comes to %s at %v: %v (%s)", key, n.Pos.LSN, w.m.keys[m], master.Pos.LSN, choice.Tier, choice.Reason)
	switch choice.Tier {
	case history.TierWAL:
		if n.Pos.Empty() {
			n.Pos.History, n.Pos.Partition = master.Pos.History, master.Pos.Partition
		}
	case history.TierRewind, history.TierCheckpoint:
		if b, ask := master.Lead.Replaceable(key); ask {
			w.ask(m, b)
			return
		}
		if choice.Tier == history.TierRewind {
			n.Pos = n.Pos.Rewound(choice.Fork, master.Pos.LSN)
		} else {
			n.Pos = master.Pos
		}
	default:
		return
	}
	master.Conns++
	n.To, n.Conn = m+1, master.Conns
	master.Lead.Connect(key, n.Conn, w.time())
	w.perform(m, master.Lead.Streams(key, n.Conn, n.Pos.LSN, w.time()))
	w.answer(m)
}

// stream brings a connected replica what it lacks.
func (w *World) stream(r int) {
	n := &w.Nodes[r]
	m := n.To - 1
	master := &w.Nodes[m]
	n.Pos.LSN, n.Pos.Lineage, n.Pos.History, n.Pos.Partition = master.Pos.LSN, master.Pos.Lineage, master.Pos.History, master.Pos.Partition
	n.Pos, n.Have = n.Pos.Settled(), master.Have
	w.perform(m, master.Lead.Ack(w.m.keys[r], n.Conn, n.Pos.LSN, w.time()))
	w.answer(m)
}

// crash ends a node's process.
func (w *World) crash(i int) {
	n := &w.Nodes[i]
	for r := range w.Nodes {
		if w.Nodes[r].To == i+1 {
			w.Nodes[r].To, w.Nodes[r].Conn = 0, 0
		}
	}
	w.unfollow(i)
	*n = Node{Cut: n.Cut, Apart: n.Apart, Inc: n.Inc, Pos: n.Pos, Mark: n.Mark, Have: n.Have}
}

// start begins a node's next process.
func (w *World) start(i int) {
	n := &w.Nodes[i]
	n.Up = true
	n.Inc++
	if n.Mark {
		n.Promise = Promise{topology.NoPartition, 0, w.Now + topology.LeaseHold(topology.LeaseTTL).Milliseconds()}
	}
}

// leased gives a lease of the controller to the process that it is for.
func (w *World) leased(g core.GrantLease) {
	i := w.index(g.Key)
	if i < 0 {
		return
	}
	n := &w.Nodes[i]
	if !n.Up || n.Frozen || n.Cut || n.instance(i) != g.Instance {
		return
	}
	w.renew(i, g.Partition, g.Epoch, int64(g.Token/1e6), g.TTL)
}

func (w *World) renew(i, partition int, epoch uint64, token, ttl int64) {
	n := &w.Nodes[i]
	if !n.Held || !n.Open || n.Tenure.Partition != partition || n.Tenure.Epoch != epoch || token < n.Opened {
		return
	}
	n.Until = max(n.Until, token+min(ttl, topology.LeaseTTL.Milliseconds()))
}

// canAsk tells whether it is time for a master to ask its replicas for the lease.
func (w *World) canAsk(i int) bool {
	n := &w.Nodes[i]
	ttl := topology.LeaseTTL.Milliseconds()
	if !n.Up || n.Frozen || !n.Held || !n.Open || n.Asked == w.Now {
		return false
	}
	due := n.Until == 0 && w.Now >= n.Opened+1000 || n.Until != 0 && n.Until-w.Now < ttl*60/100 || n.Lead.PromiseWanted(w.time())
	d := w.duty(i)
	return due && d.kind == dutyMaster && d.partition == n.Tenure.Partition && d.epoch == n.Tenure.Epoch
}

// failsafe lets it ask them.
func (w *World) failsafe(i int) {
	n := &w.Nodes[i]
	n.Asked = w.Now
	w.perform(i, n.Lead.AskLease(uint64(w.Now)*1e6, topology.LeaseTTL))
	if token, ttl, ok := n.Lead.Lease(w.time()); ok {
		w.log("    lease  %s from its replicas", w.m.keys[i])
		w.renew(i, n.Tenure.Partition, n.Tenure.Epoch, int64(token/1e6), ttl.Milliseconds())
	}
	w.answer(i)
}

// promise lets a replica answer its master that asks for the lease.
func (w *World) promise(m int, ask replication.LeaseAsk) {
	r := w.index(ask.Key)
	n := &w.Nodes[r]
	if n.To != m+1 || n.Conn != ask.Conn || !w.linked(m, r) {
		return
	}
	d := w.duty(r)
	if !mayPromise(d, w.m.keys[m], d.partition, ask.Epoch, ask.TTL) || d.partition != w.Nodes[m].Tenure.Partition {
		return
	}
	n.Mark = true
	n.Promise = n.Promise.extend(d.partition, ask.Epoch, w.Now, ask.TTL)
	master := &w.Nodes[m]
	w.perform(m, master.Lead.LeaseAck(ask.Key, ask.Conn, ask.Epoch, ask.Token, w.time()))
}

// pass lets time go by at the nodes.
func (w *World) pass() {
	for i := range w.Nodes {
		n := &w.Nodes[i]
		if !n.Up || n.Frozen {
			continue
		}
		if n.Mark && n.Promise.Until <= w.Now {
			n.Mark, n.Promise = false, Promise{}
		}
		if !n.Held {
			continue
		}
		for r := range w.Nodes {
			if x := &w.Nodes[r]; x.To == i+1 && w.linked(i, r) {
				n.Lead.Heard(w.m.keys[r], x.Conn, w.time())
			}
		}
		var oldest topology.LSN
		since := time.Time{}
		if len(n.Waiting) > 0 {
			oldest, since = n.Waiting[0].LSN, time.UnixMilli(n.Waiting[0].Since).UTC()
		}
		w.perform(i, n.Lead.Tick(w.time(), replicaTimeout, oldest, since))
		w.answer(i)
	}
	for i := range w.Nodes {
		w.act(i) // a promise may be over
	}
}

// report is what a node's agent says about it now.
func (w *World) report(i int) core.AgentReport {
	n := &w.Nodes[i]
	r := core.AgentReport{
		Now: w.Now, AgentStarted: 1, Key: w.m.keys[i], Zone: zoneOf(i), Alive: n.Up, Instance: n.instance(i),
		Serving: n.Stage == Said, Role: topology.Proxy, Partition: topology.NoPartition,
		LSN: n.Pos.LSN, DataPartition: n.partition(), History: n.Pos.History,
		LeaseToken: uint64(w.Now) * 1e6,
	}
	if n.Up && n.Stage == Said {
		r.MapVersion = n.Map.Version
		if own, ok := n.Map.Find(w.m.keys[i]); ok {
			r.Role, r.State, r.Partition = own.Role, own.State, own.Partition
		}
	}
	if n.Held && n.Open {
		r.Partition, r.LeaseEpoch = n.Tenure.Partition, n.Tenure.Epoch
	}
	if w.m.Grows && n.Up && n.Stage == Said {
		w.grown(i, &r)
	}
	return r
}
