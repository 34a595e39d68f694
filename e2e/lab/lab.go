// Package lab gives the end-to-end suites a real Kubernetes on one Linux
// machine, and the means to break it: nodes that lose power, cables that are
// pulled, kubelets that die, volumes that fill up.
//
// Every node is a set of namespaces with its own containerd, kubelet and
// kube-proxy; the control plane runs beside them as plain processes.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

var (
	// ErrBadArgument is what the caller could have known.
	ErrBadArgument = errors.New("bad argument")
	// ErrNoLab means that there is no lab up.
	ErrNoLab = errors.New("no lab")
)

const (
	defaultDir   = "/var/lib/flare-lab/run"
	defaultNodes = 3
)

// Lab is a lab that is up, or could be. It holds no state of its own: many of
// them, in many processes, may speak of the same lab.
type Lab struct {
	dir   string // all run-time state; short, because sockets live in it
	cache string // what Build makes
}

// Open names the lab whose state is in dir; "" means $FLARE_LAB_DIR, or else
// /var/lib/flare-lab/run. What is built is kept in $FLARE_LAB_CACHE, or else
// in build/lab of the repository around the working directory.
func Open(dir string) (*Lab, error) {
	if dir == "" {
		dir = os.Getenv("FLARE_LAB_DIR")
	}
	if dir == "" {
		dir = defaultDir
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if len(dir) > 60 {
		return nil, fmt.Errorf("%w: the lab's directory %q is too long for the sockets in it: 60 bytes at most", ErrBadArgument, dir)
	}
	if dir == "/run" || strings.HasPrefix(dir, "/run/") {
		return nil, fmt.Errorf("%w: the lab's directory cannot be in /run: each node has a /run of its own", ErrBadArgument)
	}
	l := &Lab{dir: dir, cache: os.Getenv("FLARE_LAB_CACHE")}
	// A lab that is up goes on with what it was started from.
	if st, err := l.load(); err == nil && st != nil {
		l.cache = st.Cache
	}
	if l.cache == "" {
		repo, err := repository()
		if err != nil {
			return nil, err
		}
		l.cache = filepath.Join(repo, "build", "lab")
	}
	if l.cache, err = filepath.Abs(l.cache); err != nil {
		return nil, err
	}
	return l, nil
}

// repository is the root of the source tree around the working directory.
func repository() (string, error) {
	const marker = "e2e/lab/kubernetes/go.mod"
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, marker)); err == nil {
			return at, nil
		}
		if at == "/" {
			return "", fmt.Errorf("%w: no directory above %s has a %s: run this inside the repository, or set FLARE_LAB_CACHE", ErrBadArgument, dir, marker)
		}
	}
}

// Dir is where the lab keeps its run-time state.
func (l *Lab) Dir() string { return l.dir }

// Kubeconfig is the path of the administrator's kubeconfig.
func (l *Lab) Kubeconfig() string { return filepath.Join(l.dir, "admin.conf") }

// BinDir has kubectl, helm, grpcurl and the components.
func (l *Lab) BinDir() string { return filepath.Join(l.cache, "bin") }

// LogDir has a log for every process of the lab.
func (l *Lab) LogDir() string { return filepath.Join(l.dir, "log") }

func (l *Lab) bin(name string) string     { return filepath.Join(l.BinDir(), name) }
func (l *Lab) logFile(name string) string { return filepath.Join(l.LogDir(), name+".log") }

// path is a PATH with the lab's programs in it.
func (l *Lab) path() string {
	deb := filepath.Join(l.cache, "deb")
	return strings.Join([]string{l.BinDir(), deb + "/usr/bin", deb + "/usr/sbin",
		"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}, ":")
}

// Env is the environment in which kubectl, helm and ctr find the lab.
func (l *Lab) Env() map[string]string {
	return map[string]string{
		"KUBECONFIG": l.Kubeconfig(),
		"PATH":       l.BinDir() + ":" + filepath.Join(l.cache, "deb/usr/bin") + ":" + os.Getenv("PATH"),
	}
}

func (l *Lab) kubectlArgs(args ...string) []string {
	return append([]string{l.bin("kubectl"), "--kubeconfig=" + l.Kubeconfig()}, args...)
}

// Kubectl runs kubectl as the administrator and returns what it printed.
func (l *Lab) Kubectl(ctx context.Context, args ...string) ([]byte, error) {
	return run(ctx, l.kubectlArgs(args...)...)
}

// Nodes lists the nodes of the lab that is up.
func (l *Lab) Nodes() ([]Node, error) {
	st, err := l.load()
	if err != nil {
		return nil, err
	}
	if st == nil {
		return nil, fmt.Errorf("%w in %s: run \"lab up\" first", ErrNoLab, l.dir)
	}
	return planNodes(len(st.Nodes))
}

// Up makes sure that a healthy lab with so many nodes is up (0 means 3): one
// that is there stays as it is, a broken or different one is replaced. It
// tells w how it gets on.
func (l *Lab) Up(ctx context.Context, w io.Writer, nodes int) error {
	if nodes == 0 {
		nodes = defaultNodes
	}
	plan, err := planNodes(nodes)
	if err != nil {
		return err
	}
	say := newProgress(w)
	s, err := l.begin(ctx)
	if err != nil {
		return err
	}
	defer s.end()
	if s.st != nil {
		why := l.problem(ctx, s.st, plan)
		if why == nil {
			say.step("a healthy lab of %d nodes is up already", nodes)
			say.line("kubeconfig: %s", l.Kubeconfig())
			return nil
		}
		say.step("the lab that is there will be replaced: %v", why)
		if err := s.tearDown(ctx); err != nil {
			return fmt.Errorf("take down the lab that is there: %w", err)
		}
		say.step("it is down")
	}
	if err := l.built(); err != nil {
		return err
	}
	if err := s.bringUp(ctx, say, plan); err != nil {
		return fmt.Errorf("%w\n(logs are in %s; \"lab down\" clears up)", err, l.LogDir())
	}
	say.line("kubeconfig: %s", l.Kubeconfig())
	return nil
}

func (s *session) bringUp(ctx context.Context, say *progress, plan []Node) error {
	began := time.Now()
	if err := s.prepare(ctx, plan); err != nil {
		return err
	}
	say.step("keys, network and directories are there")

	// Nodes need the API server only once their containerd runs.
	failed := make(chan error, 1)
	go func() {
		err := s.startAPI(ctx)
		if err == nil {
			say.step("API server is ready")
			err = s.startControllers()
		}
		failed <- err
	}()
	err := eachNode(plan, func(n Node) error {
		err := s.powerOn(ctx, n)
		if err == nil {
			say.step("%s (%s, %s) is on", n.Name, n.Addr, n.Zone)
		}
		return err
	})
	if err := errors.Join(err, <-failed); err != nil {
		return err
	}
	if err := s.applyManifests(ctx); err != nil {
		return err
	}
	if err := eachNode(plan, func(n Node) error { return s.joinCluster(ctx, n) }); err != nil {
		return err
	}
	say.step("kubelets are started")
	if err := s.waitNodes(ctx, began, plan...); err != nil {
		return err
	}
	say.step("nodes are Ready")
	if err := s.routeServices(ctx); err != nil {
		return err
	}
	if err := s.waitDNS(ctx); err != nil {
		return err
	}
	say.step("CoreDNS is Ready")
	return s.change(func(st *state) { st.Ready = true })
}

// prepare makes all that has to be there before the first process.
func (s *session) prepare(ctx context.Context, plan []Node) error {
	if entries, err := os.ReadDir(s.dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("%w: %s is not empty and holds no lab: empty it, or set FLARE_LAB_DIR", ErrBadArgument, s.dir)
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	before, err := readSysctls()
	if err != nil {
		return err
	}
	loops, err := loopDevices()
	if err != nil {
		return err
	}
	st := &state{
		Boot: boot, Cache: s.cache, Started: time.Now(),
		Control: map[string]process{}, Sysctls: before, Loops: loops,
	}
	for _, n := range plan {
		st.Nodes = append(st.Nodes, &nodeState{Number: n.Number, Parts: map[string]process{}})
	}
	if err := os.MkdirAll(s.LogDir(), 0o755); err != nil {
		return err
	}
	s.st = st
	if err := s.makeDirs(nodeDirs...); err != nil {
		return err
	}
	if err := s.change(func(*state) {}); err != nil {
		return err
	}
	if err := s.mountVolumes(); err != nil {
		return err
	}
	if err := writePKI(s.dir, plan); err != nil {
		return err
	}
	return networkUp(ctx)
}

// problem tells what keeps the lab from being a healthy one of these nodes.
func (l *Lab) problem(ctx context.Context, st *state, plan []Node) error {
	if !st.Ready {
		return errors.New("its start was not finished")
	}
	if len(st.Nodes) != len(plan) {
		return fmt.Errorf("it has %d nodes, not %d", len(st.Nodes), len(plan))
	}
	if dead := st.dead(); len(dead) > 0 {
		return fmt.Errorf("not running: %s", strings.Join(dead, ", "))
	}
	for _, n := range st.Nodes {
		if n.Cut || len(n.CutOff) > 0 {
			return fmt.Errorf("n%d is cut off", n.Number)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := l.Kubectl(ctx, "get", "--raw", "/readyz"); err != nil {
		return err
	}
	// A node that just came back may not have reported yet.
	_, err := l.Kubectl(ctx, "wait", "--for=condition=Ready", "nodes", "--all", "--timeout=15s")
	return err
}

// Down removes the lab: every process, mount, group, namespace and setting
// it made, and its directory. What was built stays. It is no error if there
// is no lab.
func (l *Lab) Down(ctx context.Context, w io.Writer) error {
	say := newProgress(w)
	s, err := l.begin(ctx)
	if err != nil {
		return err
	}
	defer s.end()
	if s.st == nil {
		say.step("there is no lab")
		return nil
	}
	if err := s.tearDown(ctx); err != nil {
		return err
	}
	// begin may have made it; in use, it stays.
	if parent := filepath.Dir(l.dir); parent == filepath.Dir(defaultDir) {
		os.Remove(parent)
	}
	say.step("the lab is down")
	return nil
}

func (s *session) tearDown(ctx context.Context) error {
	var nodes []Node
	for _, ns := range s.st.Nodes {
		n, err := planNode(ns.Number)
		if err != nil {
			return err
		}
		nodes = append(nodes, n)
	}
	var errs []error
	errs = append(errs, eachNode(nodes, func(n Node) error { return s.powerOff(ctx, n) }))
	for name, p := range s.st.Control {
		if err := p.kill(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", name, err))
		}
	}
	errs = append(errs, unmountAll(s.dir), removeCgroups(ctx, ""), networkDown(ctx), writeSysctls(s.st.Sysctls))
	// A loop device lets go a moment after its filesystem's last mount.
	errs = append(errs, waitFor(ctx, "loop devices to be free", 10*time.Second, 50*time.Millisecond, func(context.Context) error {
		return loopsFree(s.volumesDir())
	}), removeLoops(s.st.Loops))
	for i := range s.st.Made {
		os.Remove(s.st.Made[len(s.st.Made)-1-i]) // stays if somebody else uses it by now
	}
	// Only a lab that is gone for sure may be forgotten, and nothing may be
	// removed through a mount that is still there.
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove the lab's directory: %w", err)
	}
	s.st = nil
	return nil
}

// progress prints what was reached and when.
type progress struct {
	w     io.Writer
	start time.Time
}

func newProgress(w io.Writer) *progress { return &progress{w: w, start: time.Now()} }

func (p *progress) step(format string, args ...any) {
	p.line("%6.1fs  %s", time.Since(p.start).Seconds(), fmt.Sprintf(format, args...))
}

// line writes in one call, so that lines of parallel steps stay whole.
func (p *progress) line(format string, args ...any) { fmt.Fprintf(p.w, format+"\n", args...) }
