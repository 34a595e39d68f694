package node

import (
	"cmp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/flarekv/flare/proto/text"
)

// Types of tasks, as the original numbers its threads. A connection to another
// node has the number that the index gave to that node, 16 or more.
const (
	taskRequest        = 1 // a connection that is served here
	taskReconstruction = 3 // copies records or follows a master
	taskRelay          = 5 // sends writes to another cluster
	taskRelayDump      = 6 // sends all records to another cluster
)

// States of tasks.
const (
	taskConnecting = "connect"
	taskWaiting    = "wait"
	taskExecuting  = "execute"
	taskKilled     = "killed"
)

// A registry knows what runs in this node, for those who ask what it is doing
// (stats threads) and for those who want to end some of it (kill). Whatever runs
// registers once and is asked when somebody wants to know: registering costs a
// lock for a moment, running costs nothing.
type registry struct {
	mu    sync.Mutex
	last  int64
	tasks map[int64]*task
}

// A task is one thing that runs.
type task struct {
	id      int64
	started time.Time
	// describe tells what the task does at the moment. It is called without any
	// lock of the registry, possibly after unregister, and must not wait.
	describe func() taskInfo
	// kill asks the task to end soon; the task unregisters itself. Like describe.
	kill func()
}

// taskInfo is what a task says about itself.
type taskInfo struct {
	kind    int
	peer    string        // host:port of the other side, ":0" if there is none
	op      string        // what is executed, "" for nothing
	state   string        // one of the states above
	queue   int           // what waits
	behind  time.Duration // age of the oldest that waits
	replica bool          // it brings writes to a replica of this node's partition
}

func newRegistry() *registry { return &registry{tasks: map[int64]*task{}} }

// register adds a task, whose id no other has had.
func (r *registry) register(now time.Time, describe func() taskInfo, kill func()) *task {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	t := &task{id: r.last, started: now, describe: describe, kill: kill}
	r.tasks[t.id] = t
	return t
}

// unregister removes a task that has ended.
func (r *registry) unregister(t *task) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tasks, t.id)
}

// kill asks a task to end; false means that there is none with the id.
func (r *registry) kill(id int64) bool {
	r.mu.Lock()
	t := r.tasks[id]
	r.mu.Unlock()
	if t == nil {
		return false
	}
	t.kill()
	return true
}

// described is a task with what it said.
type described struct {
	*task
	taskInfo
}

// list asks all tasks and returns them in the order of the original.
func (r *registry) list() []described {
	r.mu.Lock()
	tasks := make([]described, 0, len(r.tasks))
	for _, t := range r.tasks {
		tasks = append(tasks, described{task: t})
	}
	r.mu.Unlock()
	for i := range tasks {
		tasks[i].taskInfo = tasks[i].describe()
	}
	slices.SortFunc(tasks, func(a, b described) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.id, b.id))
	})
	return tasks
}

// appendThreads appends the answer to stats threads, or to one of its parts.
func (s *Server) appendThreads(dst []byte, part string) []byte {
	now := s.clock()
	waiting := 0
	for _, t := range s.tasks.list() {
		waiting += t.queue
		switch part {
		case "":
		case "request":
			if t.kind != taskRequest {
				continue
			}
		case "slave":
			if !t.replica {
				continue
			}
		default:
			continue
		}
		id := strconv.FormatInt(t.id, 10)
		stat := func(name, value string) { dst = text.AppendStat(dst, id+":"+name, value) }
		seconds := func(d time.Duration) string { return strconv.FormatInt(max(0, int64(d/time.Second)), 10) }
		stat("type", strconv.Itoa(t.kind))
		stat("peer", t.peer)
		stat("op", t.op)
		stat("uptime", seconds(now.Sub(t.started)))
		stat("state", t.state)
		stat("info", "")
		stat("queue", strconv.Itoa(t.queue))
		stat("behind", seconds(t.behind))
	}
	if part == "queue" {
		dst = text.AppendStat(dst, "total_thread_queue", strconv.Itoa(waiting))
	}
	return append(dst, text.ReplyEnd...)
}

// opNames are the words of the original for what a connection executes, where
// they are not the command's.
var opNames = map[text.Command]string{
	text.CmdNone:     "",
	text.CmdDumpKey:  "dump",
	text.CmdNodeSync: "node_sync",
}

func opName(c text.Command) string {
	if name, ok := opNames[c]; ok {
		return name
	}
	return c.String()
}

// describe implements task for a connection that is served here.
func (c *conn) describe() taskInfo {
	info := taskInfo{kind: taskRequest, peer: c.nc.RemoteAddr().String(), state: taskWaiting}
	if cmd := text.Command(c.op.Load()); cmd != text.CmdNone {
		info.op, info.state = opName(cmd), taskExecuting
	}
	if replica := c.replica.Load(); replica != nil {
		info.replica = true
		info.kind = c.s.threadType(*replica)
		for _, r := range c.s.source.Replicas() {
			if r.Key == *replica {
				info.queue, info.behind = int(r.LagBatches), r.Lag
			}
		}
	}
	if c.killed.Load() {
		info.state = taskKilled
	}
	return info
}

// kill ends the connection. What is being dumped ends with a line that says so;
// a client that does not read it at once does not get it.
func (c *conn) kill() {
	c.killed.Store(true)
	switch text.Command(c.op.Load()) {
	case text.CmdDump, text.CmdDumpKey, text.CmdOrphanScan, text.CmdOrphanPurge:
		c.nc.SetWriteDeadline(time.Now().Add(killGrace))
		return
	}
	c.nc.Close()
}

// killGrace is how long a dump that is killed has to say so.
const killGrace = 500 * time.Millisecond

// threadType returns the number that the index gave to a node, by which tasks
// that have to do with it are known.
func (s *Server) threadType(node string) int {
	if t := s.maps.table(); t != nil {
		if n, known := t.nodes.Find(node); known {
			return n.ThreadType
		}
	}
	return 0
}

// describe implements task for a connection to another node.
func (l *link) describe() taskInfo {
	info := taskInfo{kind: l.peers.threadType(l.node), peer: l.node, state: taskWaiting}
	l.mu.Lock()
	defer l.mu.Unlock()
	info.queue = len(l.queue) + len(l.inflight)
	if info.queue == 0 {
		return info
	}
	oldest := l.queue
	if len(l.inflight) > 0 {
		oldest = l.inflight
	}
	info.behind = time.Since(oldest[0].since)
	info.op, info.state = "proxy_write", taskExecuting
	if l.reads {
		info.op = "proxy_read"
	}
	if l.conn == nil {
		info.state = taskConnecting
	}
	return info
}

// kill closes the connection to the other node; requests that were not sent open
// the next one.
func (l *link) kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(l.conn, errKilled)
}
