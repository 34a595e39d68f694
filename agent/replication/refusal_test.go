package replication

import (
	"bufio"
	"bytes"
	"context"
	"hash/crc32"
	"io"
	"net"
	"testing"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/proto/topology"
)

// edited returns a frame with one byte changed behind its header's checksum.
func edited(frame []byte, at int) []byte {
	b := bytes.Clone(frame)
	b[at] ^= 0xff
	return b
}

// sealed returns a header without a payload that has its checksum.
func sealed(t frameType, length uint32) []byte {
	var b bytes.Buffer
	writeFrame(&b, frameAlive, nil)
	h := b.Bytes()
	h[0], h[1], h[2], h[3], h[4] = byte(length>>24), byte(length>>16), byte(length>>8), byte(length), byte(t)
	sum := crc32.Checksum(h[:9], castagnoli)
	h[9], h[10], h[11], h[12] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
	return h
}

// TestMasterRefusesBadInput: whatever a replica says that none of this cluster would,
// the master counts it by its reason, ends the connection and changes nothing.
func TestMasterRefusesBadInput(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a := c.nodes["a:1"]
	a.lead(1, "b:1")
	a.put("k", "v")
	pos := a.db.Position()
	before := digest(t, a.db)
	good := hello{partition: 0, lineage: pos.Lineage}.encode()
	ack := func(l topology.LSN) []byte { return frames(t, frameHello, good, frameAck, appendLSN(nil, l)) }
	future := topology.LSN{Epoch: pos.LSN.Epoch, Index: pos.LSN.Index + 7}
	at := FollowRequest{Self: "b:1", History: pos.History, LSN: pos.LSN}
	ahead, other := at, at
	ahead.LSN, other.Partition = future, 3
	for name, tt := range map[string]struct {
		req    FollowRequest
		send   []byte
		reason string
	}{
		"wrong checksum":               {at, edited(frames(t, frameHello, good), frameHeaderSize), refusedChecksum},
		"garbage":                      {at, []byte("GET / HTTP/1.1\r\nHost: flare\r\n\r\n"), refusedChecksum},
		"unknown frame":                {at, sealed(frameEnd, 0), refusedUnknown},
		"oversize frame":               {at, sealed(frameHello, 1<<30), refusedOversize},
		"fields that are none":         {at, frames(t, frameHello, []byte("x")), refusedFields},
		"another frame first":          {at, frames(t, frameAck, appendLSN(nil, pos.LSN)), refusedUnexpected},
		"a frame twice":                {at, frames(t, frameHello, good, frameHello, good), refusedUnexpected},
		"a master's frame":             {at, frames(t, frameHello, good, frameBatch, []byte("x")), refusedUnexpected},
		"claims a future position":     {ahead, frames(t, frameHello, good), refusedFuture},
		"acknowledges the future":      {at, ack(future), refusedFuture},
		"acknowledges a future epoch":  {at, ack(topology.LSN{Epoch: 9, Index: 1}), refusedFuture},
		"acknowledges another history": {at, ack(topology.LSN{Epoch: 0, Index: pos.LSN.Index}), refusedDiverged},
		"asks for another partition":   {other, frames(t, frameHello, good), refusedPartition},
	} {
		t.Run(name, func(t *testing.T) {
			var refused Refusals
			a.tune(func() { a.src.cfg.Refusals = &refused })
			ours, theirs := net.Pipe()
			done := make(chan error, 1)
			go func() { done <- a.src.Serve(t.Context(), theirs, tt.req) }()
			go ours.Write(tt.send)
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				io.Copy(io.Discard, ours)
			}()
			if err := <-done; reasonOf(err) != tt.reason || refused.Counted(tt.reason) != 1 {
				t.Errorf("%v, counted %d times; want %s", err, refused.Counted(tt.reason), tt.reason)
			}
			<-closed
			ours.Close()
		})
	}
	if got := digest(t, a.db); got != before || a.db.Position().LSN != pos.LSN {
		t.Error("data were changed")
	}
}

// TestReplicaRefusesBadInput: likewise a replica what a master says.
func TestReplicaRefusesBadInput(t *testing.T) {
	c := newCluster(t, "a:1", "b:1")
	a, b := c.nodes["a:1"], c.nodes["b:1"]
	a.lead(1, "b:1")
	b.follow(a)
	a.put("k", "v")
	b.reached(a)
	b.unfollow()
	pos := b.db.Position()
	before := digest(t, b.db)
	tail, err := a.db.Tail(topology.LSN{})
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	old, _, err := tail.TryNext()
	if err != nil {
		t.Fatal(err)
	}
	begin := func(tier history.Tier, id string) []byte {
		return start{tier: tier, reason: "r", lsn: topology.LSN{Epoch: 1, Index: 99}, history: id, interval: 50, timeout: 5000}.encode()
	}
	wal := begin(history.TierWAL, pos.History)
	batch := frames(t, frameBatch, old.Data)
	stream := frames(t, frameStart, wal)
	with := func(more []byte) []byte { return append(bytes.Clone(stream), more...) }
	files := []history.File{{Name: "x", Size: 1}}
	checkpoint := func(more ...any) []byte {
		return frames(t, append([]any{frameStart, begin(history.TierCheckpoint, "other"),
			frameCheckpointBegin, checkpointBegin{"id", old.LSN, files}.encode()}, more...)...)
	}
	for name, tt := range map[string]struct {
		send   []byte
		reason string
	}{
		"batch with a wrong checksum":  {with(edited(batch, frameHeaderSize+20)), refusedChecksum},
		"garbage":                      {with(bytes.Repeat([]byte("garbage "), 8)), refusedChecksum},
		"unknown frame":                {with(sealed(frameEnd+3, 0)), refusedUnknown},
		"oversize frame":               {with(sealed(frameHeartbeat, 1<<29)), refusedOversize},
		"a start twice":                {with(frames(t, frameStart, wal)), refusedUnexpected},
		"a replica's frame":            {with(frames(t, frameAck, appendLSN(nil, pos.LSN))), refusedUnexpected},
		"a batch again":                {with(batch), refusedGap},
		"a batch that is none":         {with(frames(t, frameBatch, []byte("x"))), refusedBatch},
		"log of another cluster":       {frames(t, frameStart, begin(history.TierWAL, "other")), refusedHistory},
		"fields that are none":         {with(frames(t, frameHeartbeat, []byte("x"))), refusedFields},
		"file with a wrong checksum":   {checkpoint(frameFileBegin, fileBegin{"x", 1, 0}.encode(), frameFileData, []byte("y"), frameFileEnd, []byte{1, 2, 3, 4}), refusedCopy},
		"file that was not announced":  {checkpoint(frameFileBegin, fileBegin{"y", 1, 0}.encode()), refusedCopy},
		"end before the files arrived": {checkpoint(frameCheckpointDone, []byte(nil)), refusedCopy},
	} {
		t.Run(name, func(t *testing.T) {
			var refused Refusals
			ctx, cancel := context.WithCancel(t.Context())
			f := NewFollower(b.db, FollowerConfig{Self: "b:1", Logger: quiet, Refusals: &refused, Dial: func(context.Context) (Conn, error) {
				here, there := net.Pipe()
				go func() {
					defer there.Close()
					r := bufio.NewReader(there)
					r.ReadString('\n')
					io.WriteString(there, "OK\r\n")
					go io.Copy(io.Discard, r)
					there.Write(tt.send) // all of it is read, for nothing is buffered in between
					<-ctx.Done()
				}()
				return here, nil
			}})
			done := make(chan struct{})
			go func() {
				defer close(done)
				f.Run(ctx)
			}()
			waitFor(t, "it is refused", func() bool { return refused.Counted(tt.reason) > 0 })
			waitFor(t, "the status says so", func() bool { return f.Status().ErrorReason == tt.reason })
			cancel()
			<-done
		})
	}
	if got := digest(t, b.db); got != before || b.db.Position().LSN != pos.LSN {
		t.Error("data were changed")
	}
}
