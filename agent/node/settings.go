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
	"github.com/flarekv/flare/agent/storage"
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
	inFile  map[string]bool // options that the file has or had
	applied []byte          // of the agent
	sources options.Sources // of the values in force
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
	s.remember(named)
	s.sources = options.SourcesOf(s.inFile, nil, line)
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
	if err == nil {
		err = line.Over(wanted).Check(appliedName, named)
	}
	if err != nil {
		logger.Warn("options applied last are not understood any more and left out", "reason", "rejected", "error", err)
		return s, opts, nil
	}
	s.applied = text
	s.sources = options.SourcesOf(s.inFile, named, line)
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

// remember notes what the operator's file names.
func (s *Settings) remember(named []options.Setting) {
	if s.inFile == nil {
		s.inFile = map[string]bool{}
	}
	for _, n := range named {
		s.inFile[n.Key] = true
	}
}

// wanted reads a text of the agent over base and under the command line.
func (s *Settings) wanted(file string, text []byte, base options.Options) (options.Options, []options.Setting, error) {
	wanted, named, err := options.Parse(file, text, base)
	wanted = s.line.Over(wanted)
	if err == nil {
		err = wanted.Check(file, named)
	}
	return wanted, named, err
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
	wanted, named, refused := s.settings.wanted(textName, text, s.settings.base)
	if refused == nil {
		refused = s.tune(textName, wanted, named)
	}
	if refused != nil {
		s.logRefused("options rejected", refused)
		return false, s.report(wanted, named, refused), nil
	}
	if err := s.settings.keep(text); err != nil {
		if untuned := s.db.Tune(s.live.Load().EngineValues()); untuned != nil {
			err = errors.Join(err, untuned)
		}
		return false, nil, fmt.Errorf("keep accepted options: %w", err)
	}
	s.settings.applied = text
	logWithoutEffect(s.logger, options.WithoutEffect(named))
	s.adopt(wanted, named)
	return true, s.report(wanted, named, nil), nil
}

// report tells what became of each option. What could change at once and is not as
// wanted is something that RocksDB made of it.
func (s *Server) report(wanted options.Options, named []options.Setting, err error) []options.Status {
	statuses := options.Report(*s.live.Load(), wanted, named, err, s.settings.line)
	for i := range statuses {
		st := &statuses[i]
		if spec, _ := options.Find(st.Key); spec.Live && st.State == options.PendingRestart {
			st.State, st.Reason = options.Applied, options.ReasonAdjusted
			st.Message = fmt.Sprintf("is in force as %s, which RocksDB made of %s", st.Effective, wanted.Value(st.Key))
		}
	}
	return statuses
}

// textName is what a text of the agent is called in messages.
const textName = "options"

// tune gives RocksDB its own among the wanted options that can change now: all, or
// none and an error that is a *options.ParseError. What waits for the next start is
// looked at, so that this does not fail over it.
func (s *Server) tune(file string, wanted options.Options, named []options.Setting) error {
	next := s.live.Load().WithLive(wanted)
	err := s.db.CheckTuning(nil, wanted.EngineValues())
	if err == nil {
		err = s.db.Tune(next.EngineValues())
	}
	return engineRefusal(file, named, err)
}

// engineRefusal makes what RocksDB says of options a problem of the lines that they
// are on.
func engineRefusal(file string, named []options.Setting, err error) error {
	if err == nil {
		return nil
	}
	var refused *storage.TuningError
	if !errors.As(err, &refused) {
		return &options.ParseError{Problems: []options.Problem{{File: file, Reason: options.ReasonEngine, Message: "RocksDB's options cannot be changed: " + err.Error()}}}
	}
	var problems []options.Problem
	for _, name := range refused.Options {
		p := options.Problem{File: file, Key: options.EnginePrefix + name, Reason: options.ReasonEngine, Message: "is refused by RocksDB: " + refused.Err.Error()}
		if i := slices.IndexFunc(named, func(n options.Setting) bool { return n.Key == p.Key }); i >= 0 {
			p.Line = named[i].Line
		}
		problems = append(problems, p)
	}
	return &options.ParseError{Problems: problems}
}

// logRefused logs what is wrong with a file, a line each.
func (s *Server) logRefused(msg string, err error) {
	var refused *options.ParseError
	if !errors.As(err, &refused) {
		s.logger.Warn(msg, "reason", "rejected", "error", err)
		return
	}
	for _, p := range refused.Problems {
		s.logger.Warn(msg, "reason", p.Reason, "option", p.Key, "line", p.Line, "error", p)
	}
}

// Reload reads the operator's file again and applies what can be changed now. An
// option that the file does not have any more keeps its value.
func (s *Server) Reload() error {
	if s.settings == nil {
		return nil
	}
	s.settings.mu.Lock()
	defer s.settings.mu.Unlock()
	base, inFile, err := s.settings.readFile(s.settings.base)
	var wanted options.Options
	var inText []options.Setting
	if err == nil {
		wanted, inText, err = s.settings.wanted(appliedName, s.settings.applied, base)
	}
	if err == nil {
		err = s.tune(s.settings.file, wanted, inFile)
	}
	if err != nil {
		s.logRefused("configuration file rejected", err)
		return fmt.Errorf("node: reload: %w", err)
	}
	s.settings.base = base
	s.settings.remember(inFile)
	s.adopt(wanted, inText)
	return nil
}

// adopt changes to the options that the settings give now, of which inText are named
// by the agent's text. RocksDB has been given its own.
func (s *Server) adopt(wanted options.Options, inText []options.Setting) {
	s.change(wanted)
	sources := options.SourcesOf(s.settings.inFile, inText, s.settings.line)
	s.settings.sources = s.settings.sources.Changed(*s.live.Load(), wanted, sources)
}

// change makes the options that can change now those of wanted.
func (s *Server) change(wanted options.Options) {
	former := *s.live.Load()
	next := s.readBack(former.WithLive(wanted))
	for _, key := range options.Changed(former, next) {
		s.logger.Info("option changed", "option", key, "from", former.Value(key), "to", next.Value(key))
	}
	for _, key := range options.Changed(next, wanted) {
		s.logger.Info("option needs a restart", "option", key, "in_force", next.Value(key), "configured", wanted.Value(key))
	}
	s.apply(next)
}

// readBack returns o with what RocksDB says that it has.
func (s *Server) readBack(o options.Options) options.Options {
	now, err := s.db.Tuning()
	if err != nil {
		s.logger.Warn("RocksDB's options cannot be read back", "error", err)
		return o
	}
	return o.WithEngineValues(now)
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
	s.setReplicationMode(o.ClusterReplication)
}
