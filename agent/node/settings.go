package node

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flarekv/flare/agent/options"
)

// appliedName is the file in the data directory that keeps the options text
// which was accepted last, so that a node starts with what it ran with,
// whatever became of the source of that text.
const appliedName = "options.applied"

// Settings are the texts that configure a node: a file that the operator wrote,
// a text that the agent sent, the command line. Later ones win.
type Settings struct {
	file string // of the operator, "" for none
	line *options.CommandLine

	mu      sync.Mutex
	base    options.Options // defaults and file
	applied []byte          // of the agent
	path    string          // where applied is kept
}

// LoadSettings reads the configuration of a starting node and returns the
// options it gives. A kept text that does not parse any more is left out and
// logged; everything else that is wrong is an error.
func LoadSettings(file string, line *options.CommandLine, logger *slog.Logger) (*Settings, options.Options, error) {
	s := &Settings{file: file, line: line}
	base, named, err := s.readFile(options.Default())
	if err != nil {
		return nil, options.Options{}, err
	}
	s.base = base
	noEffect := append(options.WithoutEffect(named), line.WithoutEffect()...)
	defer func() { logWithoutEffect(logger, noEffect) }()
	opts := line.Over(base)
	if err := opts.Validate(); err != nil {
		return nil, options.Options{}, err
	}
	s.path = filepath.Join(opts.DataDir, appliedName)
	text, err := os.ReadFile(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, opts, nil
	case err != nil:
		return nil, options.Options{}, fmt.Errorf("options applied last: %w", err)
	}
	wanted, named, err := options.Parse(appliedName, text, base)
	if err != nil {
		logger.Warn("options applied last are not understood any more and left out", "reason", "rejected", "error", err)
		return s, opts, nil
	}
	s.applied = text
	noEffect = append(noEffect, options.WithoutEffect(named)...)
	kept := line.Over(wanted)
	// Where the data is cannot be said by a file inside it.
	kept.DataDir = opts.DataDir
	return s, kept, nil
}

// logWithoutEffect names options that are accepted and have no meaning here.
func logWithoutEffect(logger *slog.Logger, keys []string) {
	if len(keys) > 0 {
		slices.Sort(keys)
		logger.Info("options of flare 1.x accepted without effect", "reason", options.ReasonNoEffect,
			"options", strings.Join(slices.Compact(keys), ","))
	}
}

// readFile returns base with the operator's file over it, and what the file names.
func (s *Settings) readFile(base options.Options) (options.Options, []options.Setting, error) {
	if s.file == "" {
		return base, nil, nil
	}
	text, err := os.ReadFile(s.file)
	if err != nil {
		return options.Options{}, nil, fmt.Errorf("configuration file: %w", err)
	}
	return options.Parse(s.file, text, base)
}

// keep stores text durably as the one applied last.
func (s *Settings) keep(text []byte) error {
	dir := filepath.Dir(s.path)
	f, err := os.CreateTemp(dir, appliedName+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), s.path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// applyText takes over an options text from the agent: whole, or not at all.
// The statuses tell what became of each option; an error means that nothing is
// known to have been stored.
func (s *Server) applyText(text []byte) (accepted bool, statuses []options.Status, err error) {
	if s.settings == nil {
		return false, nil, errors.New("this node takes no options")
	}
	s.settings.mu.Lock()
	defer s.settings.mu.Unlock()
	wanted, named, parseErr := options.Parse("options", text, s.settings.base)
	wanted = s.settings.line.Over(wanted)
	if parseErr == nil {
		if err := s.settings.keep(text); err != nil {
			return false, nil, fmt.Errorf("keep accepted options: %w", err)
		}
		s.settings.applied = text
		logWithoutEffect(s.logger, options.WithoutEffect(named))
		s.change(wanted)
	} else {
		s.logger.Warn("options rejected", "reason", "rejected", "error", parseErr)
	}
	return parseErr == nil, options.Report(*s.live.Load(), wanted, named, parseErr, s.settings.line), nil
}

// Reload reads the operator's file again and applies what can be changed now. An
// option that the file does not have any more keeps its value.
func (s *Server) Reload() error {
	if s.settings == nil {
		return nil
	}
	s.settings.mu.Lock()
	defer s.settings.mu.Unlock()
	base, _, err := s.settings.readFile(s.settings.base)
	if err != nil {
		return fmt.Errorf("node: reload: %w", err)
	}
	wanted, _, err := options.Parse(appliedName, s.settings.applied, base)
	if err != nil {
		return fmt.Errorf("node: reload: %w", err)
	}
	s.settings.base = base
	s.change(s.settings.line.Over(wanted))
	return nil
}

// change makes the options that can change now those of wanted.
func (s *Server) change(wanted options.Options) {
	former := *s.live.Load()
	next := former.WithLive(wanted)
	for _, key := range options.Changed(former, next) {
		s.logger.Info("option changed", "option", key, "from", former.Value(key), "to", next.Value(key))
	}
	for _, key := range options.Changed(next, wanted) {
		s.logger.Info("option needs a restart", "option", key, "in_force", next.Value(key), "configured", wanted.Value(key))
	}
	s.apply(next)
}

// apply puts options in force.
func (s *Server) apply(o options.Options) {
	s.live.Store(&o)
	if s.level != nil {
		s.level.Set(o.LogLevel)
	}
	s.db.SetSyncWrites(o.RocksDB.SyncWrites)
	s.db.SetRetention(time.Duration(o.RocksDB.WALTTLSeconds)*time.Second, o.RocksDB.WALSizeLimitMB<<20)
	s.db.SetReplicaRetention(o.RocksDB.WALReplicaLimitMB << 20)
	s.db.SetMaxBatchBytes(int(o.RocksDB.WALMaxBatchBytes))
	s.watcher.set(o.TimeWatcher)
	s.sweeper.changed()
	s.relays.look()
	s.setRemote(o.ClusterReplication)
}
