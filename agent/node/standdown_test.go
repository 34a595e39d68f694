package node

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

func TestProbation(t *testing.T) {
	for row, want := range map[int]time.Duration{1: 0, 2: 5 * time.Second, 3: 10 * time.Second, 7: 160 * time.Second, 8: 5 * time.Minute, 99: 5 * time.Minute} {
		if got := probation(row); got != want {
			t.Errorf("after %d in a row: %v, want %v", row, got, want)
		}
	}
}

// streamFrame is a frame of the replication stream.
func streamFrame(kind byte, payload []byte) []byte {
	sum := func(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
	frame := append(binary.BigEndian.AppendUint32(nil, uint32(len(payload))), kind)
	frame = binary.BigEndian.AppendUint32(frame, sum(append([]byte{kind}, payload...)))
	return append(binary.BigEndian.AppendUint32(frame, sum(frame)), payload...)
}

// streamStart begins a stream of the log by a master at 0/index without a history.
func streamStart(index uint64) []byte {
	str := func(dst []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint32(dst, uint32(len(s))), s...)
	}
	b := str([]byte{1}, "same_history")
	b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, 0), index)
	b = str(b, "")
	return streamFrame(2, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, 100), 10_000))
}

// TestReplicaThatCannotSyncStandsDown: a master whose stream never fits makes its
// replica say that it is down and forward reads instead of answering older and older
// ones; when the stream fits again, it offers itself again.
func TestReplicaThatCannotSyncStandsDown(t *testing.T) {
	const (
		away = iota
		broken
		whole
	)
	var mode, streams atomic.Int64
	x, master := newTestIndex(t), newCppNode(t)
	master.mu.Lock()
	master.answer = func(req *text.Request) string {
		switch req.Command {
		case text.CmdGet, text.CmdGets:
			return "VALUE k 0 5 9\r\nfresh\r\nEND\r\n"
		}
		return text.ReplyOK
	}
	master.stream = func(nc net.Conn) {
		switch streams.Add(1); mode.Load() {
		case broken:
			io.WriteString(nc, "OK\r\n")
			nc.Write(append(streamStart(50), streamFrame(3, []byte("no batch"))...))
			io.Copy(io.Discard, nc)
		case whole:
			io.WriteString(nc, "OK\r\n")
			nc.Write(streamStart(1))
			io.Copy(io.Discard, nc)
		}
	}
	master.mu.Unlock()
	b := startNode(t, x)
	if _, err := b.db.Update(t.Context(), []byte("k"), func(storage.Entry) storage.Change {
		return storage.Change{Op: storage.Put, Record: storage.Record{Version: 1, Value: []byte("stale")}}
	}); err != nil {
		t.Fatal(err)
	}
	x.add(master.entry(topology.Master, topology.Active, 0, 0))
	x.slave(b.key(), 0, 1)
	x.change(func() { x.find(b.key()).State = topology.Active })
	b.settled(dutySlave)

	// A master that cannot be reached is no reason: nobody else may have the data.
	eventually(t, "attempts", func() error {
		if streams.Load() < 2 {
			return errors.New("not yet")
		}
		return nil
	})
	dial(t, b).ask("get k\r\n", "VALUE k 0 5\r\nstale\r\nEND\r\n")
	dial(t, b).ask("ping\r\n", "OK\r\n")

	mode.Store(broken)
	eventually(t, "the index knows", func() error {
		if s := x.state(b.key()); s != topology.Down {
			return errors.New(s.String())
		}
		return nil
	})
	dial(t, b).ask("get k\r\n", "VALUE k 0 5\r\nfresh\r\nEND\r\n")
	dial(t, b).ask("ping\r\n", "SERVER_ERROR resync_failed\r\n")
	if st := b.nodeStatus(); st.Serving || st.NotServingReason != "resync_failed" {
		t.Errorf("serving %v, %s", st.Serving, st.NotServingReason)
	}
	if n := b.refusals.Counted("damaged_batch"); n < 3 {
		t.Errorf("%d batches were refused", n)
	}
	if len(b.log.lines("reason=resync_failed")) != 1 {
		t.Errorf("logged: %q", b.log.lines("resync_failed"))
	}
	// It goes on trying.
	mode.Store(whole)
	eventually(t, "it offers itself", func() error {
		if got := dial(t, b).line("ping\r\n"); got != "OK" {
			return errors.New(got)
		}
		return nil
	})
	x.slave(b.key(), 0, 1)
	b.settled(dutySlave)
	eventually(t, "it follows", func() error {
		if st := b.nodeStatus(); !st.Serving || st.CatchUp == nil || !st.CatchUp.Connected {
			return errors.New("not yet")
		}
		return nil
	})
	stats, err := b.appendStats(nil)
	if err != nil || !strings.Contains(string(stats), "rocksdb_resync_stand_downs 1\r\n") {
		t.Errorf("stats: %v", err)
	}
}
