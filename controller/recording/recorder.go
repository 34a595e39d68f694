package recording

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/flarekv/flare/controller/core"
)

// Config is what a Recorder is made of.
type Config struct {
	// File is appended to; "-" is the standard output.
	File string
	// Limit is how many bytes a recording may have, with what is in the file already.
	Limit   int64
	Program string // version of the program, for whoever replays it
	Logger  *slog.Logger
}

const (
	// queued is how many lines may wait for the disk, which the core does not wait for.
	queued = 8192
	// Digests of the state are of a step a second at most, and take at most one part in
	// digestShare of the time.
	digestEvery = time.Second
	digestShare = 50
)

// Recorder writes a recording. It never holds up whose steps it records: when the disk
// does not keep up, or the file has its size, it ends with a line that says so. Its
// methods are for one goroutine at a time.
type Recorder struct {
	program string
	log     *slog.Logger
	lines   chan []byte
	written sync.WaitGroup

	left   int64 // bytes that may still be written
	ended  bool  // nothing more is recorded
	digest time.Time
}

// Open begins a recording, or goes on with one. Close ends it.
func Open(c Config) (*Recorder, error) {
	r := &Recorder{program: c.Program, log: c.Logger, lines: make(chan []byte, queued), left: c.Limit}
	if c.File == "-" {
		r.written.Go(func() { r.write(os.Stdout) })
		return r, nil
	}
	f, err := os.OpenFile(c.File, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	r.left -= info.Size()
	if last := make([]byte, 1); info.Size() > 0 {
		if _, err := f.ReadAt(last, info.Size()-1); err != nil {
			f.Close()
			return nil, err
		}
		if last[0] != '\n' { // of a controller that was killed
			r.lines <- []byte("\n")
		}
	}
	r.written.Go(func() {
		r.write(f)
		if err := f.Close(); err != nil {
			r.log.Error("the recording may lack its end", "error", err)
		}
	})
	return r, nil
}

// write writes lines until there are no more. After an error it only takes them.
func (r *Recorder) write(w io.Writer) {
	failed := false
	var b []byte
	for text := range r.lines {
		if failed {
			continue
		}
		// What is there goes in one write.
		if b = append(b, text...); len(r.lines) > 0 && len(b) < 1<<16 {
			continue
		}
		if _, err := w.Write(b); err != nil {
			failed = true
			r.log.Error("recording ends: it cannot be written", "error", err)
		}
		b = b[:0]
	}
}

// Begin records that a reign begins with a state.
func (r *Recorder) Begin(state core.State) {
	if r.ended {
		return
	}
	r.put(line{Begin: &begin{Format: Format, Program: r.program, At: time.Now().UTC().Format(time.RFC3339), State: plain(state)}})
	r.digest = time.Time{}
}

// Step records a step: the input, what core.Advance was told beside it, the state after
// it, and its effects.
func (r *Recorder) Step(in core.Input, more, owing bool, state core.State, effects []core.Effect) {
	if r.ended {
		return
	}
	l := lineOf(in, more, owing, &state, effects)
	if _, ok := in.(core.Tick); ok {
		if began := time.Now(); !began.Before(r.digest) {
			l.State = digests(&state)
			now := time.Now()
			r.digest = now.Add(max(digestEvery, digestShare*now.Sub(began)))
		}
	}
	r.put(l)
}

// put hands a line over to be written.
func (r *Recorder) put(l line) {
	text, err := json.Marshal(l)
	if err != nil {
		r.end(fmt.Sprintf("a step cannot be written: %v", err))
		return
	}
	text = append(text, '\n')
	if r.left -= int64(len(text)); r.left < 0 {
		r.end("it has the size that it may have")
		return
	}
	if len(r.lines) >= cap(r.lines)-1 { // one is for the end
		r.end("it could not be written as fast as the controller works")
		return
	}
	r.lines <- text
}

// end ends the recording for a reason.
func (r *Recorder) end(why string) {
	r.ended = true
	r.log.Warn("recording ends", "reason", why)
	text, _ := json.Marshal(line{End: why}) // of a string there is no error
	r.lines <- append(text, '\n')
}

// Close writes what was recorded.
func (r *Recorder) Close() {
	r.ended = true
	close(r.lines)
	r.written.Wait()
}
