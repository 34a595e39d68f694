package replication

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// The replica's half of the copy of a checkpoint: see copysend.go.

var errBadCopy = errors.New("damaged checkpoint copy")

// reasonDiskFull is why a replica does not take a copy.
const reasonDiskFull = "disk_full"

// A filePart is the beginning of a file with its checksum.
type filePart struct {
	name string
	size uint64
	crc  uint32 // CRC-32C
}

// copyReceiver writes the files of a checkpoint into a directory.
type copyReceiver struct {
	dir   string
	known map[string]filePart // of what is in dir, as far as it need not be read again; outlives the receiver

	begin    checkpointBegin
	began    bool
	missing  map[string]int64 // size of the files that have not been received whole
	total    uint64
	kept     uint64 // bytes of what was there before
	agreed   uint64 // of kept: the master has the same
	done     uint64 // agreed and received
	offered  map[string]filePart
	file     *os.File   // being received
	part     filePart   // that file so far
	left     uint64     // of it
	whole    []filePart // files that have been received, and may not be on the disk yet
	spool    *spool     // nil before the first file
	next     []byte     // memory for the next payload, nil for none
	finished bool
}

// plan takes the announcement of a checkpoint: it removes what does not belong to it
// from the directory and finds out what the master need not send.
func (c *copyReceiver) plan(payload []byte) error {
	begin, err := decodeCheckpointBegin(payload)
	if err != nil {
		return err
	}
	if c.began {
		return refuse(refusedUnexpected, "%w: repeated %v", errBadCopy, frameCheckpointBegin)
	}
	c.began, c.begin, c.missing, c.offered = true, begin, map[string]int64{}, map[string]filePart{}
	for _, f := range begin.files {
		// What comes over a wire must not choose where it is written.
		if f.Name != filepath.Base(f.Name) || !filepath.IsLocal(f.Name) || f.Name == "." {
			return refuse(refusedCopy, "%w: file name %q", errBadCopy, f.Name)
		}
		if _, twice := c.missing[f.Name]; twice || f.Size < 0 {
			return refuse(refusedCopy, "%w: %s of %d bytes, the name a second time: %v", errBadCopy, f.Name, f.Size, twice)
		}
		c.missing[f.Name] = f.Size
		c.total += uint64(f.Size)
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		size, wanted := c.missing[e.Name()]
		if !wanted || info.Size() > size || !info.Mode().IsRegular() {
			delete(c.known, e.Name())
			if err := os.RemoveAll(filepath.Join(c.dir, e.Name())); err != nil {
				return err
			}
			continue
		}
		part, err := c.sum(e.Name(), info.Size())
		if err != nil {
			return err
		}
		c.offered[part.name] = part
		c.kept += part.size
	}
	return nil
}

// sum returns a file's checksum.
func (c *copyReceiver) sum(name string, size int64) (filePart, error) {
	if part, ok := c.known[name]; ok && part.size == uint64(size) {
		return part, nil
	}
	part := filePart{name: name}
	in, err := os.Open(filepath.Join(c.dir, name))
	if err != nil {
		return part, err
	}
	defer in.Close()
	crc := crc32.New(castagnoli)
	n, err := io.Copy(crc, in)
	part.size, part.crc = uint64(n), crc.Sum32()
	return part, err
}

// have lists what is here, in the order of the announcement.
func (c *copyReceiver) have() (list []filePart) {
	for _, f := range c.begin.files {
		if part, ok := c.offered[f.Name]; ok {
			list = append(list, part)
		}
	}
	return list
}

// lacking returns how many bytes are still to come, if the master agrees to have.
func (c *copyReceiver) lacking() uint64 { return c.total - c.kept }

// frame takes one frame behind the announcement, with the payload's memory and the
// checksum of the frame.
func (c *copyReceiver) frame(t frameType, payload []byte, crc uint32) error {
	if !c.began {
		return unexpected(t)
	}
	switch t {
	case frameFileBegin:
		return c.beginFile(payload)
	case frameFileData:
		return c.write(payload, crc)
	case frameFileEnd:
		return c.endFile(payload)
	case frameCheckpointDone:
		if c.file != nil || len(c.missing) > 0 {
			return refuse(refusedCopy, "%w: ended with %d files missing", errBadCopy, len(c.missing))
		}
		if err := c.settle(); err != nil {
			return err
		}
		c.finished = true
		return nil
	}
	return unexpected(t)
}

// memory returns where the next frame may be read to.
func (c *copyReceiver) memory() []byte {
	if c.spool == nil {
		return nil
	}
	if c.next == nil {
		c.next = c.spool.chunk()
	}
	return c.next
}

func (c *copyReceiver) beginFile(payload []byte) error {
	b, err := decodeFileBegin(payload)
	if err != nil {
		return err
	}
	size, wanted := c.missing[b.name]
	offered := c.offered[b.name]
	switch {
	case c.file != nil:
		return refuse(refusedCopy, "%w: %s begins within another file", errBadCopy, b.name)
	case !wanted || b.size != uint64(size):
		return refuse(refusedCopy, "%w: %s of %d bytes was not announced", errBadCopy, b.name, b.size)
	case b.offset != 0 && b.offset != offered.size:
		return refuse(refusedCopy, "%w: %s from byte %d, %d are here", errBadCopy, b.name, b.offset, offered.size)
	}
	c.part = filePart{name: b.name}
	if b.offset > 0 {
		c.part = offered
	}
	delete(c.known, b.name)
	if c.file, err = os.OpenFile(filepath.Join(c.dir, b.name), os.O_WRONLY|os.O_CREATE, 0o644); err != nil {
		return err
	}
	if err := c.file.Truncate(int64(b.offset)); err != nil {
		return err
	}
	if _, err := c.file.Seek(int64(b.offset), io.SeekStart); err != nil {
		return err
	}
	if c.spool == nil {
		c.spool = newSpool()
	}
	c.left = b.size - b.offset
	c.agreed += b.offset
	c.done += b.offset
	return nil
}

func (c *copyReceiver) write(payload []byte, crc uint32) error {
	if c.file == nil || uint64(len(payload)) > c.left {
		return refuse(refusedCopy, "%w: more data than announced", errBadCopy)
	}
	c.next = nil
	n := uint64(len(payload))
	c.part.crc = fileCRC(c.part.crc, frameFileData, crc, len(payload))
	c.part.size += n
	c.left -= n
	c.done += n
	return c.spool.add(c.file, payload)
}

func (c *copyReceiver) endFile(payload []byte) error {
	crc, err := decodeU32(frameFileEnd, payload)
	if err != nil {
		return err
	}
	if c.file == nil || c.left != 0 || crc != c.part.crc {
		name := c.part.name
		c.part.name = "" // nothing of it can be trusted
		return refuse(refusedCopy, "%w: %s: %d bytes missing or checksum %08x, want %08x", errBadCopy, name, c.left, c.part.crc, crc)
	}
	file := c.file
	c.file = nil
	c.whole = append(c.whole, c.part)
	delete(c.missing, c.part.name)
	return c.spool.end(file)
}

// settle waits until everything that was received is on the disk.
func (c *copyReceiver) settle() error {
	if c.spool == nil {
		return nil
	}
	err := c.spool.close()
	c.spool = nil
	if err != nil {
		return err // nobody knows how much of which file is there
	}
	for _, part := range c.whole {
		c.known[part.name] = part
	}
	c.whole = nil
	return nil
}

// close ends the reception. What has been received stays.
func (c *copyReceiver) close() {
	err := c.settle()
	if c.file == nil {
		return
	}
	if c.part.name == "" {
		c.file.Truncate(0)
	}
	if c.file.Close() == nil && err == nil && c.part.name != "" {
		c.known[c.part.name] = c.part
	}
	c.file = nil
}

// receiveCopy receives a checkpoint and puts it in the place of the database.
func (s *session) receiveCopy() error {
	failed := func(err error) error {
		if _, refused := errors.AsType[*Error](err); refused {
			return fmt.Errorf("receive checkpoint: %w", err)
		}
		reason := "copy_failed"
		if errors.Is(err, syscall.ENOSPC) {
			reason = reasonDiskFull
		}
		return &Error{reason, fmt.Errorf("receive checkpoint: %w", err)}
	}
	dir, name, err := s.db.Incoming()
	if err != nil {
		return failed(err)
	}
	if name == "" || s.parts == nil {
		s.parts = map[string]filePart{}
	}
	if err := s.send(frameResume, appendString(nil, cmp.Or(name, s.refused))); err != nil {
		return fmt.Errorf("receive checkpoint: %w", err)
	}
	c := &copyReceiver{dir: dir, known: s.parts}
	defer c.close()
	began := time.Now()
	for !c.finished {
		t, payload, crc, err := readFrameTo(s.r, c.memory())
		if err != nil {
			return fmt.Errorf("receive checkpoint: %w", err)
		}
		if handled, err := s.common(t, payload); err != nil {
			return err
		} else if handled {
			continue
		}
		if t == frameCheckpointBegin {
			began = time.Now()
			err = s.acceptCopy(c, payload)
		} else {
			err = c.frame(t, payload, crc)
		}
		if err != nil {
			return failed(err)
		}
		s.attempts.copied = c.done
		s.update(func(fs *FollowerStatus) {
			fs.Waiting, fs.WaitingPosition, fs.BytesDone, fs.BytesTotal = "", 0, c.done, c.total
			s.up.copied(time.Now(), c.done, c.total, 0)
		})
	}
	s.log.Info("checkpoint received", "bytes", c.total, "received", c.total-c.agreed, "took", time.Since(began))
	s.measure(func(c *catchUp, _ time.Time) { c.install() })
	s.parts = nil
	if err := s.db.Replace(dir); err != nil {
		// It came whole, and yet is no database to go on with: the next copy begins
		// from nothing.
		return failed(errors.Join(err, s.db.DropIncoming()))
	}
	pos := s.db.Position()
	if pos.LSN != c.begin.lsn {
		return failed(fmt.Errorf("checkpoint is at %v, want %v", pos.LSN, c.begin.lsn))
	}
	s.log.Info("checkpoint installed", "lsn", pos.LSN)
	s.update(func(fs *FollowerStatus) {
		fs.Checkpoints++
		fs.CopiedBytes += c.total - c.agreed
		fs.ResumedBytes += c.agreed
		fs.BytesDone, fs.BytesTotal = 0, 0
	})
	s.measure(func(c *catchUp, now time.Time) { c.log(now, pos.LSN.Index, s.status.MasterLSN.Index) })
	s.countUnusable(0)
	s.allowRewind()
	s.setApplied(pos.LSN)
	return nil
}

// acceptCopy tells the master what need not be sent of a checkpoint, or refuses one
// that does not fit the disk before anything of it is written.
func (s *session) acceptCopy(c *copyReceiver, payload []byte) error {
	if err := c.plan(payload); err != nil {
		return err
	}
	free, reserve, err := s.db.Space()
	if err != nil {
		return err
	}
	if need := c.lacking() + uint64(reserve); uint64(max(free, 0)) < need {
		err := fmt.Errorf("%d bytes are free, %d are needed: %d of a copy of %d, and %d to stay free",
			free, need, c.lacking(), c.total, reserve)
		s.refused = c.begin.id // which the master keeps for a while
		s.send(frameError, refusal{reasonDiskFull, err.Error()}.encode())
		return &Error{reasonDiskFull, err}
	}
	if err := s.db.NameIncoming(c.begin.id); err != nil {
		return err
	}
	if c.kept > 0 {
		s.log.Info("going on with a copy that was interrupted", "checkpoint", c.begin.id, "bytes", c.total, "there", c.kept)
	}
	return s.send(frameHave, encodeHave(c.have()))
}
