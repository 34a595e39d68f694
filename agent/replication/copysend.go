package replication

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
)

// The copy of a checkpoint, from the master's disk to the replica's: the master's
// half.
//
// Whatever of a file the replica has it announces with a CRC-32C, and what the
// master's file begins with the same bytes is not sent again. It does not matter
// where the replica has them from: names of table files are numbers that each
// database counts for itself, so that equal names and sizes prove nothing, and the
// checksum alone decides. Every file is checked as a whole again when its last byte
// has arrived, and two files that differ have the same checksum once in four billion
// times, which is what RocksDB trusts for each of its blocks.

const (
	maxChunk = 256 << 10
	minChunk = 512
	// keepCopy is how long a checkpoint whose transfer broke off is kept.
	keepCopy = time.Minute
	// stallTimeout is how long a replica may take nothing of what it is sent.
	stallTimeout = 30 * time.Second
	// readRate is how many bytes a second a replica must read at least of what it has.
	readRate = 32 << 20
)

// outgoing is a checkpoint on its way to one replica.
type outgoing struct {
	id    string
	snap  history.Snapshot
	sums  map[string]uint32 // CRC-32C of the files that were sent whole
	until time.Time         // when it is kept no longer
}

// copy makes a checkpoint and sends it, or what is missing of one whose transfer
// broke off. The files are gone when it returns; the log behind the checkpoint is
// there until the snapshot is released.
func (c *sender) copy(f *feed, log *slog.Logger) (history.Snapshot, error) {
	id, err := c.resume(f)
	if err != nil {
		return history.Snapshot{}, err
	}
	leave, err := c.enter()
	if err != nil {
		return history.Snapshot{}, err
	}
	defer leave()

	o := c.s.kept(f.key, id)
	if o != nil {
		log.Info("going on with a checkpoint", "checkpoint", o.id, "lsn", o.snap.LSN, "bytes", o.snap.Bytes())
	} else {
		snap, err := c.snapshot()
		if err != nil {
			return history.Snapshot{}, &Error{"checkpoint_failed", fmt.Errorf("make a checkpoint: %w", err)}
		}
		var name [8]byte
		rand.Read(name[:])
		o = &outgoing{id: hex.EncodeToString(name[:]), snap: snap, sums: map[string]uint32{}}
		log.Info("sending a checkpoint", "checkpoint", o.id, "lsn", snap.LSN, "files", len(snap.Files), "bytes", snap.Bytes())
	}
	began := time.Now()
	sent, err := c.sendFiles(f, o)
	if err != nil {
		c.s.keepCopy(f.key, o)
		return history.Snapshot{}, err
	}
	o.snap.DropFiles()
	log.Info("checkpoint sent", "checkpoint", o.id, "lsn", o.snap.LSN, "bytes", o.snap.Bytes(), "sent", sent, "took", time.Since(began))
	return o.snap, nil
}

// keepCopy keeps a checkpoint whose transfer broke off, with the log behind it, for
// as long as the replica may need to come back. No more of them are kept than may be
// sent at a time.
func (s *Source) keepCopy(key string, o *outgoing) {
	o.until = time.Now().Add(s.copyPatience)
	s.mu.Lock()
	drop := []*outgoing{o}
	if s.stop != nil {
		drop[0] = s.outgoing[key]
		s.outgoing[key] = o
		if len(s.outgoing) > s.maxCopies() {
			oldest := key
			for k, other := range s.outgoing {
				if other.until.Before(s.outgoing[oldest].until) {
					oldest = k
				}
			}
			drop = append(drop, s.outgoing[oldest])
			delete(s.outgoing, oldest)
		}
	}
	s.mu.Unlock()
	release(drop)
}

// kept returns the checkpoint with the id that was kept for a replica, if there is
// one. Any other that was kept for it is let go.
func (s *Source) kept(key, id string) *outgoing {
	s.mu.Lock()
	o := s.outgoing[key]
	delete(s.outgoing, key)
	s.mu.Unlock()
	if o != nil && o.id != id {
		release([]*outgoing{o})
		return nil
	}
	return o
}

// overdueCopies takes out the checkpoints that are kept no longer at a time; it
// needs mu. The zero time stands for the end of time.
func (s *Source) overdueCopies(now time.Time) (list []*outgoing) {
	for key, o := range s.outgoing {
		if now.IsZero() || !now.Before(o.until) {
			list = append(list, o)
			delete(s.outgoing, key)
		}
	}
	return list
}

// release lets checkpoints go. It takes disk time and must not be called with
// Source.mu.
func release(list []*outgoing) {
	for _, o := range list {
		if o != nil {
			o.snap.Release()
		}
	}
}

// resume learns which interrupted copy the replica wants to go on with.
func (c *sender) resume(f *feed) (id string, err error) {
	payload, err := c.await(f, frameResume, handshakeTimeout)
	if err != nil {
		return "", err
	}
	return decodeString(frameResume, payload)
}

// await waits for what the replica has to say, with signs of life.
func (c *sender) await(f *feed, t frameType, patience time.Duration) ([]byte, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	ticker := time.NewTicker(c.interval())
	defer ticker.Stop()
	for {
		select {
		case said := <-f.said:
			if said.t != t {
				return nil, fmt.Errorf("%w, want %v", unexpected(said.t), t)
			}
			return said.payload, nil
		case <-c.ctx.Done():
			return nil, context.Cause(c.ctx)
		case <-timer.C:
			return nil, refuse(refusedSlow, "no %v within %v", t, patience)
		case <-ticker.C:
		}
		if err := c.heartbeat(); err != nil {
			return nil, err
		}
	}
}

// enter waits until the copy's turn has come: copies share disk and network, and
// all together would take longer. leave must be called at the end of the copy.
func (c *sender) enter() (leave func(), err error) {
	ticket := c.s.copies.queue(c.s.maxCopies)
	ticker := time.NewTicker(c.interval())
	defer ticker.Stop()
	for {
		select {
		case <-ticket.turn:
			return ticket.leave, nil
		case <-c.ctx.Done():
			ticket.leave()
			return nil, context.Cause(c.ctx)
		case <-ticker.C:
		}
		err := c.send(frameNotice, notice{noticeCopies, uint32(ticket.position())}.encode())
		if err == nil {
			err = c.heartbeat()
		}
		if err != nil {
			ticket.leave()
			return nil, err
		}
		c.s.copies.admit(c.s.maxCopies) // the limit may have changed
	}
}

// noticeCopies tells a replica that other copies go before its own.
const noticeCopies = "waiting_for_other_copy"

func (s *Source) maxCopies() int {
	if s.cfg.MaxCopies == nil {
		return 1
	}
	return max(s.cfg.MaxCopies(), 1)
}

// snapshot makes the checkpoint, with signs of life.
func (c *sender) snapshot() (history.Snapshot, error) {
	type result struct {
		snap history.Snapshot
		err  error
	}
	made := make(chan result, 1)
	go func() {
		snap, err := c.s.log.Snapshot()
		made <- result{snap, err}
	}()
	abandon := func(err error) (history.Snapshot, error) {
		go func() {
			if r := <-made; r.err == nil {
				r.snap.Release()
			}
		}()
		return history.Snapshot{}, err
	}
	ticker := time.NewTicker(c.interval())
	defer ticker.Stop()
	for {
		select {
		case r := <-made:
			return r.snap, r.err
		case <-c.ctx.Done():
			return abandon(context.Cause(c.ctx))
		case <-ticker.C:
		}
		if err := c.heartbeat(); err != nil {
			return abandon(err)
		}
	}
}

// sendFiles sends what the replica lacks of a checkpoint, and returns how many bytes
// that was.
func (c *sender) sendFiles(f *feed, o *outgoing) (sent uint64, err error) {
	total := uint64(o.snap.Bytes())
	c.progress(f, 0, total)
	defer c.progress(f, 0, 0)
	begin := checkpointBegin{id: o.id, lsn: o.snap.LSN, files: o.snap.Files}
	if err := c.send(frameCheckpointBegin, begin.encode()); err != nil {
		return 0, err
	}
	if err := c.w.Flush(); err != nil {
		return 0, fmt.Errorf("send: %w", err)
	}
	payload, err := c.await(f, frameHave, c.s.stall+time.Duration(total/readRate)*time.Second)
	if err != nil {
		return 0, err
	}
	have, err := decodeHave(payload)
	if err != nil {
		return 0, err
	}
	there := map[string]filePart{}
	for _, p := range have {
		there[p.name] = p
	}
	done := uint64(0)
	buf := make([]byte, frameHeaderSize+maxChunk)
	for _, file := range o.snap.Files {
		n, err := c.sendFile(f, o, file, there[file.Name], buf, &done, total)
		if err != nil {
			return sent, fmt.Errorf("%s: %w", file.Name, err)
		}
		sent += n
	}
	if err := c.send(frameCheckpointDone, nil); err != nil {
		return sent, err
	}
	return sent, c.w.Flush()
}

// sendFile sends a file but for its beginning, if the replica has that.
func (c *sender) sendFile(f *feed, o *outgoing, file history.File, has filePart, buf []byte, done *uint64, total uint64) (sent uint64, err error) {
	in, err := os.Open(filepath.Join(o.snap.Dir, file.Name))
	if err != nil {
		return 0, err
	}
	defer in.Close()
	same, err := c.begins(in, o, file, has, buf)
	if err != nil {
		return 0, err
	}
	crc, offset := uint32(0), uint64(0)
	if same {
		crc, offset = has.crc, has.size
	} else if _, err := in.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	*done += offset
	if err := c.send(frameFileBegin, fileBegin{file.Name, uint64(file.Size), offset}.encode()); err != nil {
		return 0, err
	}
	for left := file.Size - int64(offset); left > 0; {
		// A chunk must not take so long that the other side takes us for dead.
		chunk := int64(maxChunk)
		if rate := c.copyRate(); rate > 0 {
			chunk = min(max(rate/8, minChunk), maxChunk)
		}
		frame := buf[:frameHeaderSize+min(chunk, left)]
		b := frame[frameHeaderSize:]
		if _, err := io.ReadFull(in, b); err != nil {
			return sent, noEOF(err)
		}
		sum, err := c.sendWhole(frame, frameFileData)
		if err != nil {
			return sent, err
		}
		crc = fileCRC(crc, frameFileData, sum, len(b))
		left -= int64(len(b))
		*done += uint64(len(b))
		sent += uint64(len(b))
		c.progress(f, *done, total)
		if err := c.limited(c.copyRate, len(b)); err != nil {
			return sent, err
		}
	}
	o.sums[file.Name] = crc
	return sent, c.send(frameFileEnd, binary.BigEndian.AppendUint32(nil, crc))
}

// sendWhole sends a frame that has room for its header before the payload: in one
// piece, past the writer's buffer. It returns its checksum.
func (c *sender) sendWhole(frame []byte, t frameType) (crc uint32, err error) {
	crc, err = putHeader(frame, t, frame[frameHeaderSize:])
	if err == nil {
		err = c.w.Flush()
	}
	if err == nil {
		_, err = c.w.Write(frame)
	}
	if err != nil {
		return 0, fmt.Errorf("send %v: %w", t, err)
	}
	return crc, nil
}

// begins reports whether a file begins with what the replica has of it; then the
// file is read up to there.
func (c *sender) begins(in io.ReadSeeker, o *outgoing, file history.File, has filePart, buf []byte) (bool, error) {
	if has.size == 0 || has.size > uint64(file.Size) {
		return false, nil
	}
	if sum, ok := o.sums[file.Name]; ok && has.size == uint64(file.Size) {
		_, err := in.Seek(0, io.SeekEnd)
		return sum == has.crc, err
	}
	crc := uint32(0)
	for left := has.size; left > 0; {
		b := buf[:min(left, uint64(len(buf)))]
		if _, err := io.ReadFull(in, b); err != nil {
			return false, noEOF(err)
		}
		crc = crc32.Update(crc, castagnoli, b)
		left -= uint64(len(b))
		if now := time.Now(); now.Sub(c.beat) >= c.interval() {
			c.beat = now
			if err := c.heartbeat(); err != nil {
				return false, err
			}
		}
	}
	return crc == has.crc, nil
}

// copyRate is this copy's share of the bandwidth for copies.
func (c *sender) copyRate() int64 {
	if c.s.cfg.CopyBandwidth == nil {
		return 0
	}
	rate := c.s.cfg.CopyBandwidth()
	if rate > 0 {
		rate = max(rate/int64(c.s.copies.running()), 1)
	}
	return rate
}

func (c *sender) progress(f *feed, done, total uint64) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	f.bytesDone, f.bytesTotal = done, total
	if done < total {
		f.up.copied(time.Now(), done, total, 0)
	} else {
		f.up.install()
	}
}

// turns lets so many copies run at a time, and the others wait in the order in which
// they came.
type turns struct {
	mu      sync.Mutex
	present int // running
	waiting []*ticket
}

// ticket is one copy's place.
type ticket struct {
	turns *turns
	limit func() int
	turn  chan struct{} // closed when it may run
}

func (q *turns) queue(limit func() int) *ticket {
	t := &ticket{q, limit, make(chan struct{})}
	q.mu.Lock()
	q.waiting = append(q.waiting, t)
	q.mu.Unlock()
	q.admit(limit)
	return t
}

// admit lets run who may.
func (q *turns) admit(limit func() int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) > 0 && q.present < limit() {
		q.present++
		close(q.waiting[0].turn)
		q.waiting = q.waiting[1:]
	}
}

// running returns how many copies run, at least 1.
func (q *turns) running() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return max(q.present, 1)
}

// position returns how many copies go before this one but for those that run, plus
// one; 0 when its turn has come.
func (t *ticket) position() int {
	t.turns.mu.Lock()
	defer t.turns.mu.Unlock()
	for i, w := range t.turns.waiting {
		if w == t {
			return i + 1
		}
	}
	return 0
}

// leave gives the place to the next.
func (t *ticket) leave() {
	q := t.turns
	q.mu.Lock()
	ran := true
	for i, w := range q.waiting {
		if w == t {
			q.waiting = append(q.waiting[:i:i], q.waiting[i+1:]...)
			ran = false
			break
		}
	}
	if ran {
		q.present--
	}
	q.mu.Unlock()
	q.admit(t.limit)
}
