package node

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/relay"
	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

const (
	// relayTick is how often what relays tell is looked at.
	relayTick = time.Second
	// relayLanes is the number of connections to a node of this cluster.
	relayLanes = 2
	// relayEnd is how long the rest of the log may take to reach a new partition
	// that was put in force.
	relayEnd = time.Minute
	// probeTimeout bounds the question whether a slave can read the log.
	probeTimeout = 3 * time.Second
	// dumpMemory is how long before it was seen as a slave, or as the master of a new
	// partition, a node may have begun a dump and still get everything that was
	// written since.
	dumpMemory = 10 * time.Minute
	// dumpGrain is how exactly the begin of a dump is remembered.
	dumpGrain = time.Second
)

// A relayPurpose is what writes are sent to another node for.
type relayPurpose uint8

const (
	// relaySlave: a slave of this node's partition, which may not be able to read
	// the log. The original is not.
	relaySlave relayPurpose = iota
	// relayFill: the master of the partition that is being added.
	relayFill
	// relayCluster: another cluster.
	relayCluster
)

// A relayKey names one relay.
type relayKey struct {
	purpose relayPurpose
	peer    string // host:port
}

// wantedRelays tells to whom this node sends its writes one by one. streams are
// the slaves known to read the log.
func wantedRelays(t *table, held tenure, o options.ClusterReplication, streams map[string]bool) (wanted []relayKey) {
	if t == nil || !held.held {
		return nil
	}
	part := t.view.Preparing
	active := held.partition < len(t.view.Partitions)
	if active {
		part = &t.view.Partitions[held.partition]
	}
	if part == nil || part.Number != held.partition || part.Master != t.self {
		return nil
	}
	for _, n := range part.Slaves {
		if !streams[n.Key()] {
			wanted = append(wanted, relayKey{relaySlave, n.Key()})
		}
	}
	if q := t.view.Preparing; active && q != nil && q.Master != "" && q.Master != t.self {
		wanted = append(wanted, relayKey{relayFill, q.Master})
	}
	if active && o.Enabled && o.ServerName != "" {
		wanted = append(wanted, relayKey{relayCluster, clusterAddr(o)})
	}
	return wanted
}

// clusterAddr is the node of the other cluster.
func clusterAddr(o options.ClusterReplication) string {
	return net.JoinHostPort(o.ServerName, strconv.Itoa(o.ServerPort))
}

// A relayKeeper runs the relays that the role of this node and its options ask
// for. It is level-triggered, as roleKeeper is.
//
// Relays do not survive the loss of the role. A new master does not know how far
// its predecessor's relay had come, so that the one to another cluster begins with
// all records; versions make it harmless that most of them are there already.
type relayKeeper struct {
	s    *Server
	poke chan struct{} // capacity 1: something other than map and role changed

	mu      sync.Mutex
	running map[relayKey]*relayRun
	streams map[string]bool // slaves by whether they read the log, as far as known

	yields yields
}

// A relayRun is a relay that runs.
type relayRun struct {
	key    relayKey
	relay  *relay.Relay
	cancel context.CancelFunc
	ending bool // it is not wanted any more, but for the rest of the log
	task   *task
	dump   *task // while the relay sends all records to another cluster
}

func newRelayKeeper(s *Server) *relayKeeper {
	return &relayKeeper{s: s, poke: make(chan struct{}, 1), running: map[relayKey]*relayRun{}, streams: map[string]bool{}}
}

// look asks for another round.
func (k *relayKeeper) look() {
	select {
	case k.poke <- struct{}{}:
	default:
	}
}

// run works until ctx ends, and then until every relay has ended.
func (k *relayKeeper) run(ctx context.Context) {
	var runs sync.WaitGroup
	defer runs.Wait()
	tick := time.NewTicker(relayTick)
	defer tick.Stop()
	for ctx.Err() == nil {
		wake := k.s.changed.wait()
		k.step(ctx, &runs)
		select {
		case <-wake:
		case <-k.poke:
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// step makes run what is wanted.
func (k *relayKeeper) step(ctx context.Context, runs *sync.WaitGroup) {
	t := k.s.maps.table()
	held, _, _ := k.s.roles.snapshot()
	o := k.s.live.Load().ClusterReplication

	k.mu.Lock()
	defer k.mu.Unlock()
	k.forget(t, held)
	wanted := map[relayKey]bool{}
	for _, key := range wantedRelays(t, held, o, k.streams) {
		wanted[key] = true
		if r := k.running[key]; r == nil {
			k.start(ctx, key, t, held, runs)
		}
	}
	if t != nil && t.view.Preparing != nil {
		k.yields.step(ctx, k.s, t, k.running[relayKey{relayFill, t.view.Preparing.Master}], runs)
	}
	for key, r := range k.running {
		switch {
		case !wanted[key] && !r.ending:
			k.end(ctx, r, t)
		case key.purpose == relayCluster:
			k.showDump(r)
		}
	}
}

// forget drops what is known of nodes that are no slaves of ours: they may come
// back as another program.
func (k *relayKeeper) forget(t *table, held tenure) {
	listed := map[string]bool{}
	for _, key := range wantedRelays(t, held, options.ClusterReplication{}, nil) {
		listed[key.peer] = true
	}
	for node := range k.streams {
		if !listed[node] {
			delete(k.streams, node)
		}
	}
}

// start begins a relay; k.mu is held.
func (k *relayKeeper) start(ctx context.Context, key relayKey, t *table, held tenure, runs *sync.WaitGroup) {
	s := k.s
	cfg := relay.Config{
		Peer:         key.peer,
		Via:          []string{s.self},
		Lanes:        func() int { return relayLanes },
		Limit:        func() int64 { return s.live.Load().ClusterReplication.SpoolLimitMB << 20 },
		Clock:        s.clock,
		Logger:       s.logger,
		FillInterval: func() time.Duration { return s.live.Load().ReconstructionInterval },
		FillRate:     func() int64 { return int64(s.live.Load().ReconstructionBwlimit) << 10 },
	}
	// What is left of other partitions stays here.
	cfg.FillKeep = func(key []byte) bool {
		t := s.maps.table()
		return t.resolver.Partition(key, max(len(t.parts), held.partition+1)) == held.partition
	}
	switch key.purpose {
	case relaySlave:
		// A slave copies the records itself. It may have begun before the map told
		// this node of it.
		cfg.Flushes = true
		cfg.From = s.dumped.since(time.Now().Add(-dumpMemory))
		cfg.Admit = func(ctx context.Context) (bool, error) {
			streams, err := k.probe(ctx, key.peer, held.partition)
			if err == nil {
				k.learn(key.peer, streams)
			}
			return !streams, err
		}
	case relayFill:
		cfg.From = s.dumped.since(time.Now().Add(-dumpMemory))
		resolver, number := t.resolver, t.view.Preparing.Number
		cfg.Keep = func(key []byte) bool { return resolver.Partition(key, number+1) == number }
		cfg.FillKeep = cfg.Keep
	case relayCluster:
		cfg.Via = nil
		cfg.Lanes = func() int { return s.live.Load().ClusterReplication.Concurrency }
		// In mode forward nothing is written here; whoever changes the mode later
		// gets no dump, as with the original.
		cfg.Fill = s.live.Load().ClusterReplication.Mode != options.Forward
	}
	runCtx, cancel := context.WithCancel(ctx)
	r := &relayRun{key: key, relay: relay.New(s.db, cfg), cancel: cancel}
	r.task = s.tasks.register(s.clock(), func() taskInfo { return k.describe(r) }, r.relay.Interrupt)
	k.running[key] = r
	runs.Go(func() {
		defer k.look()
		defer k.ended(r)
		err := r.relay.Run(runCtx)
		if key.purpose != relaySlave || !errors.Is(err, relay.ErrNotAdmitted) {
			s.logger.Info("writes are not sent to another node any more", "peer", key.peer, "acked", r.relay.Status().Acked.String())
		}
	})
}

// end stops a relay; k.mu is held. A new partition that is in force now needs what
// was written here before this node heard of it.
func (k *relayKeeper) end(ctx context.Context, r *relayRun, t *table) {
	r.ending = true
	if r.key.purpose != relayFill || t == nil || !leads(t, r.key.peer) {
		r.cancel()
		return
	}
	go func() {
		defer r.cancel()
		// Who enters from now on sees this map.
		k.s.gate.drain()
		lsn := k.s.db.Position().LSN
		ctx, cancel := context.WithTimeout(ctx, relayEnd)
		defer cancel()
		r.relay.Wait(ctx, lsn, true)
	}()
}

// leads tells whether a node is the master of a partition in force.
func leads(t *table, node string) bool {
	for i := range t.parts {
		if t.parts[i].master == node {
			return true
		}
	}
	return false
}

// ended takes a relay off the list.
func (k *relayKeeper) ended(r *relayRun) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.s.tasks.unregister(r.task)
	if r.dump != nil {
		k.s.tasks.unregister(r.dump)
	}
	delete(k.running, r.key)
}

// probe asks a slave whether it reads the log. Nodes that can answer a replicate
// line with OK or SERVER_ERROR; to the original it is an unknown word.
func (k *relayKeeper) probe(ctx context.Context, node string, partition int) (streams bool, err error) {
	for _, r := range k.s.source.Replicas() {
		if r.Key == node && r.Connected {
			return true, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	nc, err := k.s.dial(ctx, node)
	if err != nil {
		return false, err
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	line := replication.AppendRequest(nil, replication.FollowRequest{Self: k.s.self, Partition: partition})
	if _, err := nc.Write(line); err != nil {
		return false, err
	}
	reply, err := text.NewReplyReader(nc, text.ReplyOptions{}).ReadReply()
	if err != nil {
		return false, err
	}
	return reply.Code != text.CodeError, nil
}

// learn keeps what a probe told, and has the wait for replicas leave out those
// that cannot stream.
func (k *relayKeeper) learn(node string, streams bool) {
	k.mu.Lock()
	k.streams[node] = streams
	k.mu.Unlock()
	if !streams {
		k.s.logger.Info("slave cannot read the log and is sent each write", "replica", node)
	}
	k.s.changed.fire()
}

// cannotStream tells whether a slave is known to need each write sent.
func (k *relayKeeper) cannotStream(node string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	streams, known := k.streams[node]
	return known && !streams
}

// slaves returns the relays to slaves that cannot stream.
func (k *relayKeeper) slaves() (list []*relay.Relay) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, r := range k.running {
		if streams, known := k.streams[key.peer]; key.purpose == relaySlave && known && !streams {
			list = append(list, r.relay)
		}
	}
	return list
}

// await waits until the slaves that cannot stream have a position, each of them
// as long as it takes writes at all.
func (k *relayKeeper) await(ctx context.Context, lsn topology.LSN) {
	for _, r := range k.slaves() {
		r.Wait(ctx, lsn, false)
	}
}

// awaitAll waits likewise for whomever writes are sent to.
func (k *relayKeeper) awaitAll(ctx context.Context, lsn topology.LSN) {
	k.mu.Lock()
	var all []*relay.Relay
	for _, r := range k.running {
		all = append(all, r.relay)
	}
	k.mu.Unlock()
	for _, r := range all {
		r.Wait(ctx, lsn, false)
	}
}

// replicas returns what is known of all slaves of this node's partition.
func (s *Server) replicas() []replication.ReplicaStatus {
	list := s.source.Replicas()
	for _, r := range s.relays.slaves() {
		st := r.Status()
		list = append(list, replication.ReplicaStatus{
			Key: st.Peer, Connected: st.Connected, Acked: st.Acked, LagBatches: st.QueuedBatches,
			LagBytes: uint64(st.QueuedBytes), Lag: st.Lag,
		})
	}
	return list
}

// describe implements task for a relay.
func (k *relayKeeper) describe(r *relayRun) taskInfo {
	st := r.relay.Status()
	info := taskInfo{kind: taskRelay, peer: r.key.peer, state: taskWaiting, queue: int(st.QueuedBatches), behind: st.Lag,
		replica: r.key.purpose == relaySlave}
	if r.key.purpose != relayCluster {
		info.kind = k.s.threadType(r.key.peer)
	}
	if st.QueuedBatches > 0 {
		info.op, info.state = "proxy_write", taskExecuting
	}
	if !st.Connected {
		info.state = taskConnecting
	}
	return info
}

// showDump lists the sending of all records as a task of its own; k.mu is held.
func (k *relayKeeper) showDump(r *relayRun) {
	running := r.relay.Status().Fill.Running
	switch {
	case running && r.dump == nil:
		r.dump = k.s.tasks.register(k.s.clock(), func() taskInfo {
			return taskInfo{kind: taskRelayDump, peer: r.key.peer, op: "dump", state: taskExecuting}
		}, r.relay.Interrupt)
	case !running && r.dump != nil:
		k.s.tasks.unregister(r.dump)
		r.dump = nil
	}
}

// toCluster returns the relay to the other cluster; nil if none runs.
func (k *relayKeeper) toCluster() *relay.Relay {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, r := range k.running {
		if key.purpose == relayCluster && !r.ending {
			return r.relay
		}
	}
	return nil
}

// cluster returns the status of that relay; false if none runs.
func (k *relayKeeper) cluster() (relay.Status, bool) {
	if r := k.toCluster(); r != nil {
		return r.Status(), true
	}
	return relay.Status{}, false
}

// A dumpMark remembers where the log stood when dumps were asked for.
type dumpMark struct {
	mu    sync.Mutex
	marks []mark // of the last dumpMemory, oldest first
}

type mark struct {
	at  time.Time
	lsn topology.LSN
}

func (m *dumpMark) begin(now time.Time, lsn topology.LSN) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(m.marks); n > 0 && now.Sub(m.marks[n-1].at) < dumpGrain {
		return // the one before goes further back
	}
	m.marks = slices.DeleteFunc(m.marks, func(x mark) bool { return now.Sub(x.at) > dumpMemory })
	m.marks = append(m.marks, mark{now, lsn})
}

// since returns the position of the first dump that began after a time, zero for
// none.
func (m *dumpMark) since(t time.Time) topology.LSN {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, x := range m.marks {
		if !x.at.Before(t.Add(-dumpGrain)) {
			return x.lsn
		}
	}
	return topology.LSN{}
}
