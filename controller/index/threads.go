package index

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flarekv/flare/proto/text"
)

// Types of what runs, as flarei numbers its threads. A contact with a node has the
// node's own number, 16 or more.
const (
	threadRequest = 1 // a connection that is served
	threadCore    = 4 // what takes the decisions
)

// coreThread is the id of what takes the decisions.
const coreThread = 1

// thread is one line of business, for those who ask what the index is doing.
type thread struct {
	id     int64
	kind   int
	peer   string // host:port of the other side, ":0" if there is none
	op     string // what is being done, "" for nothing
	state  string // connect, wait or execute
	began  time.Time
	queue  int           // what waits
	behind time.Duration // how long it has
}

// list returns what runs, in the order of flarei.
func (s *Server) list() []thread {
	threads := []thread{{id: coreThread, kind: threadCore, peer: ":0", state: "wait", began: s.started}}
	var contacts []contact
	if s.cfg.Nodes != nil {
		contacts = s.cfg.Nodes.contacts()
	}
	numbers := map[string]int{}
	for _, n := range s.cfg.Cluster.Topology().Map.Nodes {
		numbers[n.Key()] = n.ThreadType
	}
	s.mu.Lock()
	for c := range s.conns {
		t := thread{id: c.id, kind: threadRequest, peer: c.RemoteAddr().String(), state: "wait", began: c.began}
		if c.op != text.CmdNone {
			t.op, t.state = strings.ReplaceAll(c.op.String(), " ", "_"), "execute"
		}
		threads = append(threads, t)
	}
	ids := map[string]int64{}
	for _, c := range contacts {
		id := s.threads[c.key]
		if id == 0 {
			s.lastID++
			id = s.lastID
		}
		ids[c.key] = id
		threads = append(threads, thread{id: id, kind: numbers[c.key], peer: c.key, op: c.op, state: c.state, began: c.began, queue: c.queue, behind: c.behind})
	}
	s.threads = ids
	s.mu.Unlock()
	slices.SortFunc(threads, func(a, b thread) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.id, b.id))
	})
	return threads
}

// appendThreads appends the reply of stats threads, or of one of its parts.
func (s *Server) appendThreads(dst []byte, part string) []byte {
	now := time.Now()
	waiting := 0
	for _, t := range s.list() {
		waiting += t.queue
		if part == "slave" || part == "queue" || part == "request" && t.kind != threadRequest {
			continue // an index has no slaves
		}
		id := strconv.FormatInt(t.id, 10)
		stat := func(name, value string) { dst = text.AppendStat(dst, id+":"+name, value) }
		seconds := func(d time.Duration) string { return strconv.FormatInt(max(0, int64(d/time.Second)), 10) }
		stat("type", strconv.Itoa(t.kind))
		stat("peer", t.peer)
		stat("op", t.op)
		stat("uptime", seconds(now.Sub(t.began)))
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

// kill ends a connection, by the id that stats threads shows. A contact with a node
// begins anew. false when nothing that can be ended has the id.
func (s *Server) kill(id int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.id == id {
			c.Close()
			return true
		}
	}
	for key, contact := range s.threads {
		if contact == id {
			return s.cfg.Nodes.interrupt(key)
		}
	}
	return false
}
