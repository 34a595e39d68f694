package replication

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A spool writes files beside the one who reads them from the network: the disk
// works at one chunk, and waits for a file to be durable, while the next chunk
// arrives. It works aside, as who reads does: much of a copy's processor time is spent
// here. Jobs are done in their order. It holds a bounded number of chunks, so that
// a disk that is slower than the network slows the network down.
type spool struct {
	jobs  chan spoolJob
	syncs chan *os.File
	free  chan []byte // chunks to be used again
	tasks sync.WaitGroup

	mu  sync.Mutex
	err error // the first; nothing is written after it
}

// spoolJob is a chunk to be written to a file, or the end of it.
type spoolJob struct {
	file  *os.File // the spool's to close, with the end
	chunk []byte
	end   bool
}

const (
	// spoolChunks is how many chunks wait for the disk at most.
	spoolChunks = 8
	// spoolSyncs is how many files wait to be durable at most.
	spoolSyncs = 2
	// spoolAhead is after how many bytes the disk begins to write what the kernel would
	// otherwise keep until the end of the file.
	spoolAhead = 8 << 20
)

func newSpool() *spool {
	s := &spool{
		jobs:  make(chan spoolJob, spoolChunks),
		syncs: make(chan *os.File, spoolSyncs),
		free:  make(chan []byte, spoolChunks+1),
	}
	s.tasks.Go(func() { aside(s.write) })
	s.tasks.Go(func() { aside(s.sync) })
	return s
}

// chunk returns memory for what is to be read next.
func (s *spool) chunk() []byte {
	select {
	case b := <-s.free:
		return b
	default:
		return make([]byte, maxChunk)
	}
}

// put gives memory back.
func (s *spool) put(chunk []byte) {
	if cap(chunk) < maxChunk {
		return
	}
	select {
	case s.free <- chunk[:maxChunk]:
	default:
	}
}

// add hands a chunk over; the memory is the spool's then. It returns the error of an
// earlier job.
func (s *spool) add(file *os.File, chunk []byte) error {
	s.jobs <- spoolJob{file: file, chunk: chunk}
	return s.failed()
}

// end has a file made durable and closed.
func (s *spool) end(file *os.File) error {
	s.jobs <- spoolJob{file: file, end: true}
	return s.failed()
}

// close waits until everything is done, and returns the first error.
func (s *spool) close() error {
	close(s.jobs)
	s.tasks.Wait()
	return s.failed()
}

func (s *spool) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *spool) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

func (s *spool) write() error {
	defer close(s.syncs)
	unwritten := 0 // of the file that is written to
	for j := range s.jobs {
		switch {
		case j.end:
			unwritten = 0
			s.syncs <- j.file
		case s.failed() == nil:
			if _, err := j.file.Write(j.chunk); err != nil {
				s.fail(err)
			}
			if unwritten += len(j.chunk); unwritten >= spoolAhead {
				unwritten = 0
				// Only a hint: what comes of it the end of the file tells.
				_ = unix.SyncFileRange(int(j.file.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
			}
		}
		s.put(j.chunk)
	}
	return nil
}

func (s *spool) sync() error {
	for file := range s.syncs {
		if s.failed() == nil {
			if err := file.Sync(); err != nil {
				s.fail(err)
			}
		}
		if err := file.Close(); err != nil {
			s.fail(err)
		}
	}
	return nil
}
