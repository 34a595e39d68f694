package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

// A peer is a node with the version rules of the original and nothing else.
type peer struct {
	t    testing.TB
	addr string

	mu       sync.Mutex
	l        net.Listener
	conns    map[net.Conn]struct{}
	handlers sync.WaitGroup
	records  map[string]storage.Record
	tombs    map[string]uint64
	lines    []string                         // what came, without data
	quiet    bool                             // lines is not kept
	answer   func(line string) (string, bool) // instead of the rules
	drop     func() bool                      // close instead of answering
}

func newPeer(t testing.TB) *peer {
	p := &peer{t: t, addr: "127.0.0.1:0", records: map[string]storage.Record{}, tombs: map[string]uint64{}, conns: map[net.Conn]struct{}{}}
	p.start()
	t.Cleanup(p.stop)
	return p
}

func (p *peer) start() {
	p.t.Helper()
	var l net.Listener
	eventually(p.t, "the port is free", func() (err error) { // for a moment somebody else may have it
		l, err = net.Listen("tcp", p.addr)
		return err
	})
	p.mu.Lock()
	p.l, p.addr = l, l.Addr().String()
	p.mu.Unlock()
	p.handlers.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.conns[nc] = struct{}{}
			if p.l != l {
				nc.Close() // it was accepted while stop closed the others
			}
			p.mu.Unlock()
			p.handlers.Go(func() { p.serve(nc) })
		}
	})
}

func (p *peer) stop() {
	p.mu.Lock()
	if p.l != nil {
		p.l.Close()
		p.l = nil
	}
	for nc := range p.conns {
		nc.Close()
	}
	p.mu.Unlock()
	p.handlers.Wait()
}

func (p *peer) serve(nc net.Conn) {
	defer nc.Close()
	r := text.NewReader(nc, text.Options{})
	for {
		var req text.Request
		if err := r.ReadRequest(&req); err != nil {
			return
		}
		answer, ok := p.execute(&req)
		if !ok {
			return
		}
		if _, err := nc.Write([]byte(answer)); err != nil {
			return
		}
	}
}

func (p *peer) execute(req *text.Request) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	line := ""
	if !p.quiet {
		line, _, _ = strings.Cut(string(text.AppendRequest(nil, req, req.Via)), "\r\n")
		p.lines = append(p.lines, line)
	}
	if p.drop != nil && p.drop() {
		return "", false
	}
	if p.answer != nil {
		if a, ok := p.answer(line); ok {
			return a, true
		}
	}
	key := string(req.Key())
	old, found := p.records[key]
	reply := text.ReplyError
	switch req.Command {
	case text.CmdSet:
		if found && req.Version <= old.Version {
			reply = text.ReplyNotStored
			break
		}
		p.records[key] = storage.Record{Flags: req.Flags, Expire: req.Exptime, Version: req.Version, Value: slices.Clone(req.Data)}
		reply = text.ReplyStored
	case text.CmdTouch:
		if reply = text.ReplyNotFound; found {
			old.Expire = req.Exptime
			p.records[key] = old
			reply = text.ReplyTouched
		}
	case text.CmdDelete:
		if reply = text.ReplyNotFound; found && req.Version >= old.Version {
			delete(p.records, key)
			reply = text.ReplyDeleted
		}
	case text.CmdFlushAll:
		clear(p.records)
		reply = text.ReplyOK
	}
	return reply, true
}

func (p *peer) got() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.lines)
}

func (p *peer) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func openDB(t testing.TB) *storage.DB {
	t.Helper()
	db, err := storage.Open(storage.Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), WriteBuffer: 1 << 20, BlockCache: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if _, err := db.BeginEpoch(t.Context(), 1, 0); err != nil {
		t.Fatal(err)
	}
	return db
}

func change(t testing.TB, db *storage.DB, key string, fn func(storage.Entry) storage.Change) {
	t.Helper()
	if _, err := db.Update(context.Background(), []byte(key), fn); err != nil {
		t.Fatal(err)
	}
}

func store(t testing.TB, db *storage.DB, key, value string) {
	t.Helper()
	change(t, db, key, func(e storage.Entry) storage.Change {
		return storage.Change{Op: storage.Put, Record: storage.Record{Version: max(e.Record.Version, e.Tombstone.Version) + 1, Value: []byte(value)}}
	})
}

func remove(t testing.TB, db *storage.DB, key string) {
	t.Helper()
	change(t, db, key, func(e storage.Entry) storage.Change {
		return storage.Change{Op: storage.Delete, Tombstone: storage.Tombstone{Version: e.Record.Version}}
	})
}

// run runs a relay until the test ends or stop is called.
func run(t testing.TB, db *storage.DB, cfg Config) (r *Relay, stop func()) {
	cfg.Logger = slog.New(slog.DiscardHandler)
	r = New(db, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return r, stop
}

func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}

// caughtUp waits until the peer has everything.
func caughtUp(t testing.TB, r *Relay) {
	t.Helper()
	eventually(t, "peer caught up", func() error {
		if s := r.Status(); s.QueuedBatches > 0 || s.Fill.Running || s.Fill.Runs == 0 && r.cfg.Fill {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
}

// equal compares the records of the database, those that keep wants, with the peer's.
func equal(t testing.TB, db *storage.DB, p *peer) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	want := map[string]bool{}
	for s := db.Scan(storage.ScanOptions{}); s.Next(t.Context()); {
		rec, got := s.Record(), p.records[string(s.Key())]
		want[string(s.Key())] = true
		if rec.Version != got.Version || rec.Expire != got.Expire || string(rec.Value) != string(got.Value) {
			t.Errorf("%s is %+v, at the peer %+v", s.Key(), rec, got)
		}
	}
	for k := range p.records {
		if !want[k] {
			t.Errorf("%s is at the peer only", k)
		}
	}
}

func TestRelayPlaysTheLog(t *testing.T) {
	db, p := openDB(t), newPeer(t)
	store(t, db, "before", "x")
	r, _ := run(t, db, Config{Peer: p.addr, Via: []string{"a:1"}, Flushes: true})
	step := func(do func(), want ...string) {
		t.Helper()
		n := len(p.got())
		do()
		caughtUp(t, r)
		if got := p.got()[n:]; !slices.Equal(got, want) {
			t.Errorf("sent %q, want %q", got, want)
		}
	}
	step(func() { store(t, db, "k", "v") }, "<a:1>set k 0 0 1 1")
	step(func() {
		change(t, db, "k", func(e storage.Entry) storage.Change {
			e.Record.Expire = 2000000000
			return storage.Change{Op: storage.Touch, Record: e.Record}
		})
	}, "<a:1>touch k 2000000000")
	step(func() { remove(t, db, "k") }, "<a:1>delete k 0 1")
	step(func() {
		change(t, db, "gone", func(storage.Entry) storage.Change { return storage.Change{Op: storage.Delete} })
	})
	step(func() { db.FlushAll(t.Context()) }, "flush_all")
	if s := r.Status(); s.Sent != 4 || s.Failed+s.Dropped+s.Retried != 0 || !s.Connected {
		t.Errorf("status %+v", s)
	}
}

// A touched record that the peer lacks is sent whole.
func TestRelayTouchOfAnUnknownRecord(t *testing.T) {
	db, p := openDB(t), newPeer(t)
	store(t, db, "k", "v")
	r, _ := run(t, db, Config{Peer: p.addr})
	change(t, db, "k", func(e storage.Entry) storage.Change {
		e.Record.Expire = 2000000000
		return storage.Change{Op: storage.Touch, Record: e.Record}
	})
	caughtUp(t, r)
	equal(t, db, p)
}

// TestBug11NotRepeated: the original lost the writes of the time in which a
// replica could not be reached, without a word.
func TestBug11NotRepeated(t *testing.T) {
	db, p := openDB(t), newPeer(t)
	r, _ := run(t, db, Config{Peer: p.addr, Lanes: func() int { return 2 }})
	store(t, db, "k0", "v")
	caughtUp(t, r)
	p.stop()
	for i := range 100 {
		store(t, db, fmt.Sprint("k", i%30), fmt.Sprint("v", i))
	}
	remove(t, db, "k7")
	eventually(t, "loss is noticed", func() error {
		if s := r.Status(); s.Connected || s.Reason != "unreachable" || s.QueuedBatches == 0 || s.Lag == 0 {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
	p.start()
	caughtUp(t, r)
	equal(t, db, p)
	if s := r.Status(); s.Dropped != 0 || s.Reconnects == 0 || s.Reason != "" {
		t.Errorf("status %+v", s)
	}
}

// What the peer puts off is sent again, alone; what it refuses is counted.
func TestRelayAnswers(t *testing.T) {
	db, p := openDB(t), newPeer(t)
	busy := 3
	p.set(func() {
		p.answer = func(line string) (string, bool) {
			switch {
			case strings.HasPrefix(line, "set busy") && busy > 0:
				busy--
				return "SERVER_ERROR proxy failure\r\n", true
			case strings.HasPrefix(line, "set large"):
				return text.ReplyTooLarge, true
			}
			return "", false
		}
	})
	r, _ := run(t, db, Config{Peer: p.addr})
	for _, k := range []string{"busy", "large", "other"} {
		store(t, db, k, "v")
	}
	caughtUp(t, r)
	if s := r.Status(); s.Failed != 1 || s.Sent != 2 || s.Retried < 3 || s.Reconnects != 0 {
		t.Errorf("status %+v", s)
	}
	if got := p.got(); len(got) != 6 {
		t.Errorf("requests %q", got)
	}
}

func TestRelayAdmission(t *testing.T) {
	db, p := openDB(t), newPeer(t)
	asked := 0
	r := New(db, Config{Peer: p.addr, Admit: func(context.Context) (bool, error) {
		asked++
		if asked < 3 {
			return false, errors.New("not yet")
		}
		return false, nil
	}, Logger: slog.New(slog.DiscardHandler)})
	store(t, db, "k", "v")
	if err := r.Run(t.Context()); !errors.Is(err, ErrNotAdmitted) || asked != 3 {
		t.Errorf("%v after %d questions", err, asked)
	}
	if got := p.got(); len(got) != 0 {
		t.Errorf("sent %q", got)
	}
}

// TestBug16NotRepeated: the original gave up a destination that was not there at
// the start, and was hard to switch off. Here the log that is kept for it is
// bounded; beyond that the destination gets everything anew.
func TestBug16NotRepeated(t *testing.T) {
	db, p := openDB(t), newPeer(t)
	p.stop()
	r, stop := run(t, db, Config{Peer: p.addr, Fill: true, Limit: func() int64 { return 64 << 10 }})
	store(t, db, "early", "v")
	eventually(t, "destination is missed", func() error {
		if s := r.Status(); s.Reason != "unreachable" {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
	p.start()
	caughtUp(t, r)
	equal(t, db, p)

	p.stop()
	for i := range 100 {
		store(t, db, fmt.Sprint("k", i), strings.Repeat("v", 4000))
	}
	eventually(t, "log is given up", func() error {
		if s := r.Status(); s.Dropped == 0 {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
	p.start()
	eventually(t, "second fill", func() error {
		if s := r.Status(); s.Fill.Done != 2 {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
	caughtUp(t, r)
	equal(t, db, p)

	// Switching off does not wait for a destination that does not answer.
	silent := make(chan struct{})
	p.set(func() {
		p.answer = func(string) (string, bool) { p.mu.Unlock(); <-silent; p.mu.Lock(); return "", false }
	})
	defer close(silent)
	store(t, db, "last", "v")
	eventually(t, "destination is asked", func() error {
		if got := p.got(); !strings.HasPrefix(got[len(got)-1], "set last") {
			return errors.New("not yet")
		}
		return nil
	})
	began := time.Now()
	stop()
	if d := time.Since(began); d >= replyTimeout {
		t.Errorf("it took %v to stop", d)
	}
}

// TestBug14NotRepeated: the original sent expired records of a dump as whatever
// was in memory.
func TestBug14NotRepeated(t *testing.T) {
	db, p := openDB(t), newPeer(t)
	now := time.Unix(1_800_000_000, 0)
	for i, expire := range []int64{1_799_999_999, 0, 1_800_000_000, 1_800_000_001} {
		change(t, db, fmt.Sprint("k", i), func(storage.Entry) storage.Change {
			return storage.Change{Op: storage.Put, Record: storage.Record{Flags: 1, Expire: expire, Version: 3, Value: []byte("value")}}
		})
	}
	r, _ := run(t, db, Config{Peer: p.addr, Fill: true, Clock: func() time.Time { return now },
		FillKeep: func(key []byte) bool { return true }})
	caughtUp(t, r)
	want := []string{"set k1 1 0 5 3", "set k3 1 1800000001 5 3"}
	if got := p.got(); !slices.Equal(got, want) {
		t.Errorf("sent %q, want %q", got, want)
	}
	f := r.Status().Fill
	if f.Records != 2 || f.Bytes != 14 || f.Seen != 4 || f.Percent() != 100 || f.Done != 1 {
		t.Errorf("fill %+v", f)
	}
}

// Records are written, touched and deleted while they are sent, connections are
// lost, and answers put off: in the end the peer has what the database has.
func TestRelayConverges(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			db, p := openDB(t), newPeer(t)
			rnd := rand.New(rand.NewPCG(seed, 1))
			key := func() string { return fmt.Sprint("key", rnd.IntN(300)) }
			for range 3000 {
				store(t, db, key(), strings.Repeat("x", rnd.IntN(2000)))
			}
			faults := rand.New(rand.NewPCG(seed, 2))
			p.set(func() {
				p.drop = func() bool { return faults.IntN(400) == 0 }
				p.answer = func(string) (string, bool) { return "SERVER_ERROR proxy error\r\n", faults.IntN(200) == 0 }
			})
			r, _ := run(t, db, Config{Peer: p.addr, Fill: true, Lanes: func() int { return 3 }})
			for range 2000 {
				switch k := key(); rnd.IntN(6) {
				case 0:
					change(t, db, k, func(e storage.Entry) storage.Change {
						if !e.Found {
							return storage.Change{}
						}
						return storage.Change{Op: storage.Delete, Tombstone: storage.Tombstone{Version: e.Record.Version}}
					})
				case 1:
					change(t, db, k, func(e storage.Entry) storage.Change {
						if !e.Found {
							return storage.Change{}
						}
						e.Record.Expire = 2_000_000_000 + int64(rnd.IntN(1000))
						return storage.Change{Op: storage.Touch, Record: e.Record}
					})
				case 2:
					// A client that gives versions, which may go back behind a delete.
					v := rnd.Uint64N(20) + 1
					change(t, db, k, func(e storage.Entry) storage.Change {
						if e.Found && v <= e.Record.Version {
							return storage.Change{}
						}
						return storage.Change{Op: storage.Put, Record: storage.Record{Version: v, Value: []byte("given")}}
					})
				default:
					store(t, db, k, fmt.Sprint(rnd.Uint64()))
				}
			}
			p.set(func() { p.drop, p.answer = nil, nil })
			caughtUp(t, r)
			equal(t, db, p)
		})
	}
}

// touched leaves a log in which a record is touched and, too far behind that for
// both to be sent together, written again.
func touched(t testing.TB, db *storage.DB) {
	store(t, db, "k", "old")
	change(t, db, "k", func(e storage.Entry) storage.Change {
		e.Record.Expire = 2000000000
		return storage.Change{Op: storage.Touch, Record: e.Record}
	})
	store(t, db, "large", strings.Repeat("x", maxWindowBytes))
	store(t, db, "k", "new")
}

// A fill is ahead of the log: what the log says of a former version of a record
// must not change the one that the peer has from the fill.
func TestRelayTouchBehindAFill(t *testing.T) {
	db, p := openDB(t), newPeer(t)
	store(t, db, "k", "first")
	// The clock is read before a step of the fill is.
	write := sync.OnceFunc(func() { touched(t, db) })
	r, _ := run(t, db, Config{Peer: p.addr, Fill: true, Clock: func() time.Time { write(); return time.Now() }})
	caughtUp(t, r)
	equal(t, db, p)
	if got := p.got(); len(got) == 0 || got[0] != "set k 0 0 3 3" {
		t.Errorf("sent %q: the fill was not ahead of the log", got)
	}
}

// The same where a relay repeats what the one before it has sent.
func TestRelayTouchIsRepeated(t *testing.T) {
	db, p := openDB(t), newPeer(t)
	from := db.Position().LSN
	touched(t, db)
	for range 2 {
		r, stop := run(t, db, Config{Peer: p.addr, From: from})
		eventually(t, "log is played", func() error {
			if s := r.Status(); s.Sent == 0 {
				return fmt.Errorf("status %+v", s)
			}
			return nil
		})
		caughtUp(t, r)
		stop()
		equal(t, db, p)
	}
}

// A relay may begin before it was made, as far as the log goes back, but never
// repeats that everything was removed.
func TestRelayBeginsEarlier(t *testing.T) {
	db, p := openDB(t), newPeer(t)
	from := db.Position().LSN
	store(t, db, "k", "v")
	if _, err := db.FlushAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	store(t, db, "l", "v")
	r, _ := run(t, db, Config{Peer: p.addr, From: from, Flushes: true})
	eventually(t, "peer has the record", func() error {
		if got := p.got(); len(got) != 2 {
			return fmt.Errorf("sent %q", got)
		}
		return nil
	})
	caughtUp(t, r)
	if got, want := p.got(), []string{"set k 0 0 1 1", "set l 0 0 1 1"}; !slices.Equal(got, want) {
		t.Errorf("sent %q, want %q", got, want)
	}
	_, _ = run(t, db, Config{Peer: p.addr, From: topology.LSN{Epoch: 9, Index: 9}})
}

func TestRelayWait(t *testing.T) {
	db, p := openDB(t), newPeer(t)
	hold := make(chan struct{})
	p.set(func() {
		p.answer = func(string) (string, bool) { p.mu.Unlock(); <-hold; p.mu.Lock(); return "", false }
	})
	r, _ := run(t, db, Config{Peer: p.addr})
	store(t, db, "k", "v")
	lsn := db.Position().LSN
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	r.Wait(short, lsn, false)
	if short.Err() == nil {
		t.Error("did not wait for the answer")
	}
	close(hold)
	r.Wait(t.Context(), lsn, false)
	if s := r.Status(); s.Acked.Less(lsn) {
		t.Errorf("status %+v", s)
	}
}
