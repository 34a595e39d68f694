// Package standalone lets a controller live in plain files: the FlareCluster is a
// manifest, the durable state a file beside it, and the options for the nodes are
// published in a directory that looks like a mounted ConfigMap.
//
//	<state-dir>/lock         held while a controller runs
//	<state-dir>/state.json   the durable state
//	<state-dir>/spec.json    the spec last read, and its generation
//	<state-dir>/status.yaml  the summary
//	<state-dir>/config/      extra.conf and generation, for the agents
//
// Which nodes are expected to exist may be written into a list (Config.Nodes).
// Without it it is their number that counts, partitions times replicas.
package standalone

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"sigs.k8s.io/yaml"

	v1 "github.com/flarekv/flare/controller/api/v1"
	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
)

// ErrInUse tells that another controller works in the state directory.
var ErrInUse = errors.New("another controller is running on this state directory")

// reloadEvery is the distance of looks at the manifest that no event asked for:
// not every file system tells of changes.
const reloadEvery = 10 * time.Second

// Config is what a Backend is made of.
type Config struct {
	Manifest string // path of the FlareCluster manifest
	Nodes    string // path of the list of nodes, see Nodes; may be empty or not exist
	StateDir string // made when it does not exist
	Logger   *slog.Logger
}

// Backend is a runtime.Backend on files. It holds its state directory until
// Close.
type Backend struct {
	cfg  Config
	log  *slog.Logger
	lock *os.File

	mu      sync.Mutex
	current versioned
	config  *core.WriteConfig // that is published; nil before the first
	problem string            // with the manifest, as last logged
	wrong   string            // with the list of nodes, as last logged
}

var _ runtime.Backend = (*Backend)(nil)

// versioned is a spec and its generation, the content of spec.json.
type versioned struct {
	Generation int64               `json:"generation"`
	Name       string              `json:"name"`
	Spec       v1.FlareClusterSpec `json:"spec"`
}

// Open takes the state directory and reads the manifest.
func Open(cfg Config) (*Backend, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.StateDir, 0o755); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	lock, err := lockDir(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	b := &Backend{cfg: cfg, log: cfg.Logger, lock: lock}
	if err = b.readSpec(); err == nil {
		_, err = b.reload()
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return b, nil
}

// Close gives the state directory up.
func (b *Backend) Close() error { return b.lock.Close() }

// ConfigDir is the directory in which the agents find their options.
func (b *Backend) ConfigDir() string { return filepath.Join(b.cfg.StateDir, "config") }

func (b *Backend) path(name string) string { return filepath.Join(b.cfg.StateDir, name) }

// readSpec reads the spec of a former run.
func (b *Backend) readSpec() error {
	content, err := os.ReadFile(b.path("spec.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(content, &b.current)
	}
	if err != nil {
		return fmt.Errorf("read the former spec from %s: %w", b.path("spec.json"), err)
	}
	return nil
}

// reload reads the manifest; a spec that differs from the last gets the next
// generation.
func (b *Backend) reload() (core.Spec, error) {
	c, err := ReadManifest(b.cfg.Manifest)
	if err != nil {
		return core.Spec{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	next := versioned{Generation: b.current.Generation, Name: c.Name, Spec: c.Spec}
	want, err := json.Marshal(next)
	if err != nil {
		return core.Spec{}, err
	}
	have, err := json.Marshal(b.current)
	if err != nil {
		return core.Spec{}, err
	}
	if !bytes.Equal(want, have) {
		next.Generation++
		content, err := json.MarshalIndent(next, "", "  ")
		if err != nil {
			return core.Spec{}, err
		}
		if err := writeFile(b.path("spec.json"), append(content, '\n')); err != nil {
			return core.Spec{}, fmt.Errorf("note the generation of the spec: %w", err)
		}
		b.current = next
		b.log.Info("cluster manifest read", "file", b.cfg.Manifest, "generation", next.Generation)
	}
	return runtime.SpecOf(c.Spec, b.current.Generation), nil
}

// Load reads the durable state.
func (b *Backend) Load(context.Context) (core.Durable, bool, error) {
	content, err := os.ReadFile(b.path("state.json"))
	if errors.Is(err, os.ErrNotExist) {
		return core.Durable{}, false, nil
	}
	if err != nil {
		return core.Durable{}, false, err
	}
	var d core.Durable
	if err := json.Unmarshal(content, &d); err != nil {
		return core.Durable{}, false, fmt.Errorf("%s is damaged: %w; move it away to have the state rebuilt from the nodes", b.path("state.json"), err)
	}
	return d, true, nil
}

// Persist writes the durable state.
func (b *Backend) Persist(_ context.Context, d core.Durable) error {
	content, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(b.path("state.json"), append(content, '\n'))
}

// WriteConfig publishes the options and the generation they are of.
func (b *Backend) WriteConfig(_ context.Context, c core.WriteConfig) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.config = &c
	return publishDir(b.ConfigDir(), strconv.FormatInt(c.Generation, 10), configFiles(c))
}

func configFiles(c core.WriteConfig) map[string]string {
	return map[string]string{
		"extra.conf": c.Text,
		"generation": strconv.FormatInt(c.Generation, 10) + "\n",
	}
}

// repairConfig publishes the options again when somebody changed or removed them: the
// nodes' phase of a cluster replication depends on them.
func (b *Backend) repairConfig() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.config == nil {
		return
	}
	files := configFiles(*b.config)
	for name, want := range files {
		path := filepath.Join(b.ConfigDir(), name)
		have, err := os.ReadFile(path)
		if err == nil && string(have) == want {
			continue
		}
		b.log.Warn("the options published for the nodes are not what they should be; they are published again", "file", path, "error", err)
		if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSymlink == 0 {
			os.RemoveAll(path) // something that took the place of the link
		}
		if err := publishDir(b.ConfigDir(), strconv.FormatInt(b.config.Generation, 10), files); err != nil {
			b.log.Error("the options are not published again", "error", err)
		}
		return
	}
}

// ScaleTo does nothing: nobody here can start nodes.
func (b *Backend) ScaleTo(_ context.Context, to core.ScaleTo) error {
	b.log.Info("nodes wanted", "nodes", to.Nodes)
	return nil
}

// LabelNodes does nothing: there are no Services that would select by label.
func (b *Backend) LabelNodes(context.Context, []core.NodeLabel) error { return nil }

// WriteStatus writes the summary for people.
func (b *Backend) WriteStatus(_ context.Context, s core.Status) error {
	content, err := yaml.Marshal(s)
	if err != nil {
		return err
	}
	return writeFile(b.path("status.yaml"), content)
}

// Event does nothing beyond the log, in which every event is already.
func (b *Backend) Event(context.Context, core.Event) {}

// Watch tells of the manifest's content now, after each change of the file, and
// on SIGHUP. A manifest that cannot be read is logged, and the former one stays
// in force.
func (b *Backend) Watch(ctx context.Context, observe func(core.Input)) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	// The directory, because editors and ConfigMap mounts replace the file.
	var events chan fsnotify.Event
	var failures chan error
	if w, err := fsnotify.NewWatcher(); err != nil {
		b.log.Warn("changes of the manifest are noticed late: no file events", "error", err, "every", reloadEvery)
	} else {
		defer w.Close()
		for _, file := range []string{b.cfg.Manifest, cmp.Or(b.cfg.Nodes, b.cfg.Manifest)} {
			if err := w.Add(filepath.Dir(file)); err != nil {
				b.log.Warn("changes of the manifest are noticed late: no file events", "error", err, "every", reloadEvery)
			}
		}
		events, failures = w.Events, w.Errors
	}
	poll := time.NewTicker(reloadEvery)
	defer poll.Stop()
	var last core.Spec
	var members core.Members
	for {
		b.repairConfig()
		switch next, err := readMembers(b.cfg.Nodes); {
		case err != nil:
			if wrong := err.Error(); wrong != b.wrong {
				b.wrong = wrong
				b.log.Error("the list of nodes is not taken; the former one stays in force", "file", b.cfg.Nodes, "error", err)
			}
		case !reflect.DeepEqual(next, members):
			b.wrong, members = "", next
			observe(core.MembersChanged{Members: next})
		default:
			b.wrong = ""
		}
		spec, err := b.reload()
		switch {
		case err != nil:
			if problem := err.Error(); problem != b.problem {
				b.problem = problem
				b.log.Error("the cluster manifest is not taken; the former one stays in force", "reason", core.ReasonSpecInvalid, "error", err)
			}
		case spec != last:
			b.problem, last = "", spec
			observe(core.SpecChanged{Spec: spec})
		default:
			b.problem = ""
		}
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
		case err := <-failures:
			b.log.Warn("file events were lost", "error", err)
		case <-events:
			// An editor's write comes as several events: let it finish.
			settle := time.NewTimer(50 * time.Millisecond)
		drain:
			for {
				select {
				case <-events:
				case <-settle.C:
					break drain
				case <-ctx.Done():
					settle.Stop()
					return nil
				}
			}
		case <-poll.C:
		}
	}
}
