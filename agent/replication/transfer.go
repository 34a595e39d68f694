package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
)

// The copy of a checkpoint, from the master's disk to the replica's.

const (
	maxChunk = 256 << 10
	minChunk = 512
)

// copy makes a checkpoint and sends it. The files are gone when it returns; the
// log behind the checkpoint is there until the snapshot is released.
func (c *sender) copy(f *feed, log *slog.Logger) (history.Snapshot, error) {
	if err := c.takeSlot(); err != nil {
		return history.Snapshot{}, err
	}
	defer func() { <-c.s.slot }()

	snap, err := c.snapshot()
	if err != nil {
		return history.Snapshot{}, err
	}
	began := time.Now()
	log.Info("sending a checkpoint", "lsn", snap.LSN, "files", len(snap.Files), "bytes", snap.Bytes())
	if err := c.sendFiles(f, snap.Checkpoint); err != nil {
		snap.Release()
		return history.Snapshot{}, err
	}
	snap.DropFiles()
	log.Info("checkpoint sent", "lsn", snap.LSN, "bytes", snap.Bytes(), "took", time.Since(began))
	return snap, nil
}

// takeSlot waits until no other checkpoint is made or sent: they would share
// disk and network, and all would take longer.
func (c *sender) takeSlot() error {
	ticker := time.NewTicker(c.interval())
	defer ticker.Stop()
	for {
		select {
		case c.s.slot <- struct{}{}:
			return nil
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		case <-ticker.C:
		}
		if err := c.send(frameNotice, appendString(nil, "waiting_for_other_copy")); err != nil {
			return err
		}
		if err := c.heartbeat(); err != nil {
			return err
		}
	}
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

func (c *sender) sendFiles(f *feed, cp history.Checkpoint) error {
	c.progress(f, 0, uint64(cp.Bytes()))
	defer c.progress(f, 0, 0)
	begin := checkpointBegin{cp.LSN, uint32(len(cp.Files)), uint64(cp.Bytes())}
	if err := c.send(frameCheckpointBegin, begin.encode()); err != nil {
		return err
	}
	var done uint64
	buf := make([]byte, maxChunk)
	for _, file := range cp.Files {
		if err := c.sendFile(f, filepath.Join(cp.Dir, file.Name), file, buf, &done, begin.bytes); err != nil {
			return fmt.Errorf("%s: %w", file.Name, err)
		}
	}
	if err := c.send(frameCheckpointDone, nil); err != nil {
		return err
	}
	return c.w.Flush()
}

func (c *sender) sendFile(f *feed, path string, file history.File, buf []byte, done *uint64, total uint64) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := c.send(frameFileBegin, fileBegin{file.Name, uint64(file.Size)}.encode()); err != nil {
		return err
	}
	crc := uint32(0)
	for left := file.Size; left > 0; {
		// A chunk must not take so long that the other side takes us for dead.
		chunk := int64(maxChunk)
		if c.s.cfg.CopyBandwidth != nil {
			if rate := c.s.cfg.CopyBandwidth(); rate > 0 {
				chunk = min(max(rate/8, minChunk), maxChunk)
			}
		}
		b := buf[:min(chunk, left)]
		if _, err := io.ReadFull(in, b); err != nil {
			return noEOF(err)
		}
		crc = crc32.Update(crc, castagnoli, b)
		if err := c.send(frameFileData, b); err != nil {
			return err
		}
		left -= int64(len(b))
		*done += uint64(len(b))
		c.progress(f, *done, total)
		if err := c.limited(c.s.cfg.CopyBandwidth, len(b)); err != nil {
			return err
		}
	}
	return c.send(frameFileEnd, binary.BigEndian.AppendUint32(nil, crc))
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

// copyReceiver writes the files of a checkpoint into a directory.
type copyReceiver struct {
	dir       string
	begin     checkpointBegin
	files     uint32
	done      uint64
	file      *os.File // being received
	left      uint64   // of file
	crc       uint32   // of file
	finished  bool
	beganOnce bool
}

var errBadCopy = errors.New("damaged checkpoint copy")

// frame takes one frame of the copy.
func (c *copyReceiver) frame(t frameType, payload []byte) error {
	if !c.beganOnce && t != frameCheckpointBegin {
		return fmt.Errorf("%w: %v before %v", errBadCopy, t, frameCheckpointBegin)
	}
	switch t {
	case frameCheckpointBegin:
		var err error
		if c.beganOnce {
			return fmt.Errorf("%w: repeated %v", errBadCopy, t)
		}
		c.beganOnce = true
		c.begin, err = decodeCheckpointBegin(payload)
		return err
	case frameFileBegin:
		return c.beginFile(payload)
	case frameFileData:
		return c.write(payload)
	case frameFileEnd:
		return c.endFile(payload)
	case frameCheckpointDone:
		if c.file != nil || c.files != c.begin.files || c.done != c.begin.bytes {
			return fmt.Errorf("%w: %d files of %d bytes, want %d of %d", errBadCopy, c.files, c.done, c.begin.files, c.begin.bytes)
		}
		c.finished = true
		return nil
	}
	return unexpected(t)
}

func (c *copyReceiver) beginFile(payload []byte) error {
	b, err := decodeFileBegin(payload)
	if err != nil {
		return err
	}
	// What comes over a wire must not choose where it is written.
	if b.name != filepath.Base(b.name) || !filepath.IsLocal(b.name) || b.name == "." {
		return fmt.Errorf("%w: file name %q", errBadCopy, b.name)
	}
	if c.file != nil {
		return fmt.Errorf("%w: %s begins within another file", errBadCopy, b.name)
	}
	if c.file, err = os.OpenFile(filepath.Join(c.dir, b.name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err != nil {
		return err
	}
	c.left, c.crc = b.size, 0
	return nil
}

func (c *copyReceiver) write(payload []byte) error {
	if c.file == nil || uint64(len(payload)) > c.left {
		return fmt.Errorf("%w: more data than announced", errBadCopy)
	}
	if _, err := c.file.Write(payload); err != nil {
		return err
	}
	c.left -= uint64(len(payload))
	c.done += uint64(len(payload))
	c.crc = crc32.Update(c.crc, castagnoli, payload)
	return nil
}

func (c *copyReceiver) endFile(payload []byte) error {
	crc, err := decodeU32(frameFileEnd, payload)
	if err != nil {
		return err
	}
	if c.file == nil || c.left != 0 || crc != c.crc {
		return fmt.Errorf("%w: %d bytes missing or checksum %08x, want %08x", errBadCopy, c.left, c.crc, crc)
	}
	file := c.file
	c.file = nil
	c.files++
	return errors.Join(file.Sync(), file.Close())
}

// close gives up what is not finished.
func (c *copyReceiver) close() {
	if c.file != nil {
		c.file.Close()
		c.file = nil
	}
}
