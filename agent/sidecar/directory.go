package sidecar

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/flarekv/flare/agent/options"
)

// debounce is how long the directory must be quiet before it is read.
const debounce = 50 * time.Millisecond

// appearInterval is how often a configuration directory that does not exist is
// looked for.
const appearInterval = 500 * time.Millisecond

// generationFile holds metadata.generation of the resource that the options
// file was rendered from, in decimal.
const generationFile = "generation"

// currentDir is the symlink through which the kubelet swaps all files of a mounted
// ConfigMap at once: it names a directory that is complete when it is named.
const currentDir = "..data"

// ReadDirectory reads the configuration directory. Files of one mounted
// ConfigMap version are read together, never of two. That there is nothing to
// read is no error: flared then has what its command line says.
func ReadDirectory(dir string) (File, error) {
	const tries = 5
	for try := 1; ; try++ {
		from, version := dir, ""
		if target, err := os.Readlink(filepath.Join(dir, currentDir)); err == nil {
			version = target
			from = target
			if !filepath.IsAbs(from) {
				from = filepath.Join(dir, from)
			}
		}
		f, err := readFiles(dir, from)
		// The kubelet removes the former version once it has swapped.
		if after, _ := os.Readlink(filepath.Join(dir, currentDir)); after != version && try < tries {
			continue
		}
		return f, err
	}
}

func readFiles(dir, from string) (File, error) {
	text, err := readLimited(filepath.Join(from, ConfigFile), options.MaxText+1)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return File{Note: fmt.Sprintf("there is no %s; flared has its defaults and its command line", filepath.Join(dir, ConfigFile))}, nil
	case err != nil:
		return File{}, err
	}
	f := File{Present: true, Text: string(text), Hash: hashOf(string(text))}
	gen, err := readLimited(filepath.Join(from, generationFile), 64)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return File{}, err
	default:
		f.Generation, err = strconv.ParseInt(strings.TrimSpace(string(gen)), 10, 64)
		if err != nil || f.Generation < 0 {
			f.Generation = 0
			f.Note = fmt.Sprintf("%s holds %q, which is not a generation; it must be a decimal number", filepath.Join(dir, generationFile), gen)
		}
	}
	return f, nil
}

// hashOf returns the hash of an options text as it is shown.
func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])[:12]
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

func (a *Agent) readDirectory() {
	f, err := ReadDirectory(a.set.ConfigDir)
	if err != nil {
		a.observe(ConfigUnreadable{time.Now(), err.Error()})
		return
	}
	a.observe(ConfigRead{time.Now(), f})
}

// watchDirectory reads the directory when it changes, and every PollInterval for
// the changes that no event tells of: a directory that was not there before, or
// was replaced, or a filesystem without events.
func (a *Agent) watchDirectory(ctx context.Context) {
	var (
		events <-chan fsnotify.Event
		errs   <-chan error
		add    = func() error { return nil }
	)
	if w, err := fsnotify.NewWatcher(); err != nil {
		a.log.Warn("no events for the configuration directory, it is polled", "dir", a.set.ConfigDir, "interval", a.set.PollInterval, "error", err)
	} else {
		defer w.Close()
		events, errs = w.Events, w.Errors
		// The directory and not the files: the kubelet never writes to a file, it
		// renames the link that leads to them. Adding it again does no harm.
		add = func() error { return w.Add(a.set.ConfigDir) }
	}
	// A directory that somebody is about to make is looked for more often than
	// one that is watched is polled.
	appear := time.NewTicker(appearInterval)
	defer appear.Stop()
	if err := add(); err != nil {
		a.log.Warn("configuration directory cannot be watched yet", "dir", a.set.ConfigDir, "error", err)
	} else {
		appear.Stop()
	}
	poll := time.NewTicker(a.set.PollInterval)
	defer poll.Stop()
	// What happened between the first read and the watch.
	quiet := time.NewTimer(0)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-events:
			quiet.Reset(debounce)
		case err := <-errs:
			a.log.Warn("watching the configuration directory", "dir", a.set.ConfigDir, "error", err)
			quiet.Reset(debounce)
		case <-appear.C:
			if add() == nil {
				appear.Stop()
				quiet.Reset(0)
			}
		case <-poll.C:
			if err := add(); err != nil && !errors.Is(err, fs.ErrNotExist) {
				a.log.Debug("configuration directory cannot be watched", "dir", a.set.ConfigDir, "error", err)
			}
			quiet.Reset(0)
		case <-quiet.C:
			a.readDirectory()
		}
	}
}
