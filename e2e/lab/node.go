package lab

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"
)

// nodeParts run in every node, in the order they are started.
var nodeParts = []string{"containerd", "kubelet", "kube-proxy"}

// nodeDirs are where a node's programs insist on writing; each node mounts
// its own over them.
var nodeDirs = []string{"/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers"}

var (
	//go:embed files/node-init.sh
	nodeInit string
	//go:embed files/containerd.toml
	containerdText   string
	containerdConfig = template.Must(template.New("containerd.toml").Parse(containerdText))
)

func (l *Lab) nodeDir(n Node) string { return filepath.Join(l.dir, n.Name) }

// powerOn makes a node's namespaces and starts containerd in them, with the
// lab's own images loaded.
func (s *session) powerOn(ctx context.Context, n Node) error {
	ns, err := s.st.node(n.Number)
	if err != nil {
		return err
	}
	if err := s.writeNodeConfig(n); err != nil {
		return fmt.Errorf("configure %s: %w", n.Name, err)
	}
	if err := makeCgroups(n); err != nil {
		return fmt.Errorf("cgroups of %s: %w", n.Name, err)
	}
	init, err := daemon(s.logFile(n.Name+"-init"), &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}, "/bin/sh", "-c", nodeInit, "node-init", n.Name, s.nodeDir(n), s.bin("pause"))
	if err != nil {
		return err
	}
	if err := s.change(func(*state) { ns.Init = init; ns.Parts = map[string]process{}; ns.Cut = false; ns.CutOff = nil }); err != nil {
		return err
	}
	err = waitFor(ctx, "the namespaces of "+n.Name, 10*time.Second, 10*time.Millisecond, func(context.Context) error {
		if !init.alive() {
			return giveUp(s.endedError(n.Name + "-init"))
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", init.PID))
		if err != nil || filepath.Base(exe) != "pause" {
			return fmt.Errorf("still at %q", exe)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.plugIn(ctx, n, init); err != nil {
		return fmt.Errorf("network of %s: %w", n.Name, err)
	}
	deb := filepath.Join(s.st.Cache, "deb")
	if err := s.startPart(ctx, n, "containerd", "env", "PATH="+s.path(),
		filepath.Join(deb, "usr/bin/containerd"), "--config", filepath.Join(s.nodeDir(n), "containerd.toml")); err != nil {
		return err
	}
	err = waitFor(ctx, "containerd of "+n.Name, 30*time.Second, 50*time.Millisecond, func(ctx context.Context) error {
		if !ns.Parts["containerd"].alive() {
			return giveUp(s.endedError(n.Name + "-containerd"))
		}
		_, err := run(ctx, s.ctrArgs(n, "version")...)
		return err
	})
	if err != nil {
		return err
	}
	return s.loadInto(ctx, n, s.imagesToLoad()...)
}

// joinCluster starts what makes a node of a machine with containerd.
func (s *session) joinCluster(ctx context.Context, n Node) error {
	if err := s.startKubelet(ctx, n); err != nil {
		return err
	}
	return s.startPart(ctx, n, "kube-proxy", s.bin("kube-proxy"), "--config="+filepath.Join(s.nodeDir(n), "proxy.json"))
}

func (s *session) startKubelet(ctx context.Context, n Node) error {
	return s.startPart(ctx, n, "kubelet", "env", "PATH="+s.path(), s.bin("kubelet"),
		"--config="+filepath.Join(s.nodeDir(n), "kubelet.json"), "--kubeconfig="+filepath.Join(s.dir, n.Name+".conf"),
		"--hostname-override="+n.Name, "--node-ip="+n.Addr.String(), "--root-dir=/var/lib/kubelet",
		"--node-labels=topology.kubernetes.io/region=lab,topology.kubernetes.io/zone="+n.Zone)
}

// startPart starts a program in a node's namespaces. What is remembered is
// the program itself, not the nsenter that waits for it outside.
func (s *session) startPart(ctx context.Context, n Node, part string, argv ...string) error {
	ns, err := s.st.node(n.Number)
	if err != nil {
		return err
	}
	outer, err := daemon(s.logFile(n.Name+"-"+part), nil, enter(ns.Init.PID, argv...)...)
	if err != nil {
		return err
	}
	inner, err := onlyChild(ctx, outer.PID)
	if err != nil {
		return fmt.Errorf("start %s of %s, see %s: %w", part, n.Name, s.logFile(n.Name+"-"+part), err)
	}
	return s.change(func(*state) { ns.Parts[part] = inner })
}

// enter is the command line that runs argv in the namespaces of a process.
func enter(pid int, argv ...string) []string {
	return append([]string{"nsenter", "-t", strconv.Itoa(pid), "-m", "-n", "-p", "-u", "-i", "--"}, argv...)
}

// powerOff ends a node without warning. Its disk stays: images, containers'
// last state, volumes.
func (s *session) powerOff(ctx context.Context, n Node) error {
	ns, err := s.st.node(n.Number)
	if err != nil {
		return err
	}
	if err := ns.Init.kill(ctx); err != nil {
		return fmt.Errorf("power off %s: %w", n.Name, err)
	}
	if err := s.change(func(*state) { ns.Init = process{}; clear(ns.Parts); ns.Cut = false; ns.CutOff = nil }); err != nil {
		return err
	}
	// The kernel removes the cable with the namespace, but in its own time.
	if _, err := os.Stat("/sys/class/net/" + n.link); err == nil {
		run(ctx, "ip", "link", "del", n.link) // it may be gone by now
	}
	if err := removeCgroups(ctx, n.Name); err != nil {
		return err
	}
	os.Remove(filepath.Join(s.nodeDir(n), "containerd.sock"))
	os.Remove(filepath.Join(s.nodeDir(n), "containerd.sock.ttrpc"))
	return nil
}

// plugIn gives a node its cable to the bridge, and everybody the routes.
func (s *session) plugIn(ctx context.Context, n Node, init process) error {
	outside := fmt.Sprintf("link add %[1]s type veth peer name eth0 address %[2]s netns %[3]d\nlink set %[1]s master %[4]s up\nroute replace %[5]s via %[6]s dev %[4]s\n",
		n.link, n.mac, init.PID, bridge, n.Pods, n.Addr)
	if _, err := runWith(ctx, outside, "ip", "-batch", "-"); err != nil {
		return err
	}
	inside := fmt.Sprintf("addr add %s/%d dev eth0\nlink set eth0 up\nroute add default via %s\n", n.Addr, machineNet.Bits(), controlAddr)
	for _, ns := range s.st.Nodes {
		other, err := planNode(ns.Number)
		if err != nil {
			return err
		}
		if other != n {
			inside += fmt.Sprintf("route add %s via %s\n", other.Pods, other.Addr)
		}
	}
	_, err := runWith(ctx, inside, "nsenter", "-t", strconv.Itoa(init.PID), "-n", "ip", "-batch", "-")
	return err
}

func (s *session) writeNodeConfig(n Node) error {
	dir := s.nodeDir(n)
	for _, d := range []string{filepath.Join(dir, "cni"), filepath.Join(s.volumesDir(), n.Name)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	var containerd bytes.Buffer
	err := containerdConfig.Execute(&containerd, map[string]string{
		"Dir": dir, "Deb": filepath.Join(s.st.Cache, "deb"), "PauseImage": pauseImage,
	})
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"containerd.toml": containerd.Bytes(),
		"resolv.conf":     fmt.Appendf(nil, "nameserver %s\n", controlAddr),
	}
	for name, config := range map[string]object{
		"cni/10-lab.conflist": cniConfig(n, dir),
		"kubelet.json":        kubeletConfig(n, dir),
		"proxy.json":          proxyConfig(n, filepath.Join(s.dir, "proxy.conf")),
	} {
		if files[name], err = json.MarshalIndent(config, "", "  "); err != nil {
			return err
		}
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func cniConfig(n Node, dir string) object {
	return object{
		"cniVersion": "1.0.0", "name": "lab",
		"plugins": []object{
			{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
				// Pods keep their addresses everywhere, the machine included.
				"ipMasq": false,
				"ipam": object{
					// Kept over a power cut, so that an address is not given out
					// again while somebody still remembers its last owner.
					"type": "host-local", "dataDir": dir + "/ipam",
					"ranges": [][]object{{{"subnet": n.Pods.String()}}},
					"routes": []object{{"dst": "0.0.0.0/0"}},
				},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}
}

func kubeletConfig(n Node, dir string) object {
	return object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address":                  n.Addr.String(),
		"healthzPort":              0,
		"containerRuntimeEndpoint": "unix://" + dir + "/containerd.sock",
		"volumePluginDir":          dir + "/volume-plugins",
		"resolvConf":               dir + "/resolv.conf",
		"clusterDomain":            "cluster.local",
		"clusterDNS":               []string{dnsService.String()},
		// Only the lab's network reaches it.
		"authentication": object{"anonymous": object{"enabled": true}, "webhook": object{"enabled": false}},
		"authorization":  object{"mode": "AlwaysAllow"},

		"cgroupDriver": "cgroupfs",
		"cgroupRoot":   "/" + cgroup + "/" + n.Name,
		"failCgroupV1": false,
		"failSwapOn":   false,

		// A changed ConfigMap is in the pod's volume within about a second.
		"configMapAndSecretChangeDetectionStrategy": "Watch",
		"syncFrequency": "200ms",

		"nodeStatusUpdateFrequency": "2s",
		"nodeStatusReportFrequency": "10s",
		"nodeLeaseDurationSeconds":  8,

		// The disk and the memory are the whole machine's, not the node's:
		// nothing to be gained by evicting or by removing images.
		"evictionHard":                object{"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
		"imageGCHighThresholdPercent": 100,
		"imageGCLowThresholdPercent":  99,

		"serializeImagePulls": false,
		"registryPullQPS":     0,
		"eventRecordQPS":      0,
		"kubeAPIQPS":          100,
		"kubeAPIBurst":        200,
	}
}

func proxyConfig(n Node, kubeconfig string) object {
	return object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"mode":             "nftables",
		"clusterCIDR":      podNet.String(),
		"hostnameOverride": n.Name,
		"clientConnection": object{"kubeconfig": kubeconfig},
		// These are settings of the whole machine: leave them.
		"conntrack": object{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	}
}

// cgroupMounts are the machine's hierarchies: one for each controller with
// cgroup v1, beside (or instead of them) the one of v2.
func cgroupMounts() ([]string, error) {
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	var points []string
	for _, m := range mounts {
		if m.fstype == "cgroup" || m.fstype == "cgroup2" {
			points = append(points, m.point)
		}
	}
	return points, nil
}

// makeCgroups makes the node's group in each hierarchy. A cpuset group starts
// with no CPU at all and takes nobody in until it is given some.
func makeCgroups(n Node) error {
	points, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, point := range points {
		parent := point
		for _, name := range []string{cgroup, n.Name} {
			group := filepath.Join(parent, name)
			if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				value, err := os.ReadFile(filepath.Join(parent, file))
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err == nil {
					err = os.WriteFile(filepath.Join(group, file), value, 0o644)
				}
				if err != nil {
					return err
				}
			}
			parent = group
		}
	}
	return nil
}

// removeCgroups removes the lab's groups below name ("" for all of them).
// Groups stay busy for a moment after their last process has died.
func removeCgroups(ctx context.Context, name string) error {
	points, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, point := range points {
		top := filepath.Join(point, cgroup, name)
		err := waitFor(ctx, "cgroups "+top+" to be empty", 10*time.Second, 50*time.Millisecond, func(context.Context) error {
			var groups []string
			err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				if err == nil && d.IsDir() {
					groups = append(groups, path)
				}
				return err
			})
			for _, group := range slices.Backward(groups) {
				err = errors.Join(err, os.Remove(group))
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

type mount struct{ point, fstype string }

func readMounts() ([]mount, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(string(data)), nil
}

// parseMounts reads mountinfo. The number of fields before the " - " varies.
func parseMounts(mountinfo string) []mount {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var mounts []mount
	for line := range strings.Lines(mountinfo) {
		front, back, ok := strings.Cut(line, " - ")
		f, b := strings.Fields(front), strings.Fields(back)
		if ok && len(f) > 4 && len(b) > 0 {
			mounts = append(mounts, mount{point: unescape.Replace(f[4]), fstype: b[0]})
		}
	}
	return mounts
}

// StopNode cuts a node's power: all of its processes end at once. Its images
// and volumes are there again after StartNode.
func (l *Lab) StopNode(ctx context.Context, number int) error {
	return l.withNode(ctx, number, func(s *session, n Node, ns *nodeState) error {
		return errors.Join(s.powerOff(ctx, n), s.routeServices(ctx))
	})
}

// StartNode turns a stopped node on again and waits until it is Ready. A node
// that is on stays as it is.
func (l *Lab) StartNode(ctx context.Context, number int) error {
	var since time.Time
	err := l.withNode(ctx, number, func(s *session, n Node, ns *nodeState) error {
		if ns.on() {
			return nil
		}
		since = time.Now()
		if err := s.powerOff(ctx, n); err != nil { // what is left, if it died by itself
			return err
		}
		if err := s.powerOn(ctx, n); err != nil {
			return err
		}
		if err := s.joinCluster(ctx, n); err != nil {
			return err
		}
		return s.routeServices(ctx)
	})
	if err != nil || since.IsZero() {
		return err
	}
	n, err := planNode(number)
	if err != nil {
		return err
	}
	return l.waitNodes(ctx, since, n)
}

// StopKubelet kills a node's kubelet alone: its pods go on, nobody looks
// after them, and after a while the node counts as dead.
func (l *Lab) StopKubelet(ctx context.Context, number int) error {
	return l.withNode(ctx, number, func(s *session, n Node, ns *nodeState) error {
		return ns.Parts["kubelet"].kill(ctx)
	})
}

// StartKubelet starts a node's kubelet again and waits until the node is Ready.
func (l *Lab) StartKubelet(ctx context.Context, number int) error {
	var since time.Time
	err := l.withNode(ctx, number, func(s *session, n Node, ns *nodeState) error {
		if !ns.on() {
			return fmt.Errorf("%w: %s is powered off: start the node instead", ErrBadArgument, n.Name)
		}
		if ns.Parts["kubelet"].alive() {
			return nil
		}
		since = time.Now()
		return s.startKubelet(ctx, n)
	})
	if err != nil || since.IsZero() {
		return err
	}
	n, err := planNode(number)
	if err != nil {
		return err
	}
	return l.waitNodes(ctx, since, n)
}

// CutNode pulls a node's network cable. Its pods go on and reach each other,
// but nothing else reaches them.
func (l *Lab) CutNode(ctx context.Context, number int) error {
	return l.withNode(ctx, number, func(s *session, n Node, ns *nodeState) error {
		if !ns.on() {
			return fmt.Errorf("%w: %s is powered off", ErrBadArgument, n.Name)
		}
		if _, err := run(ctx, "ip", "link", "set", n.link, "down"); err != nil {
			return err
		}
		if err := s.change(func(*state) { ns.Cut = true }); err != nil {
			return err
		}
		return s.routeServices(ctx)
	})
}

// CutNodeFrom drops everything between two nodes and their pods, both ways.
// Each still reaches all others, the control plane included.
func (l *Lab) CutNodeFrom(ctx context.Context, number, other int) error {
	return l.withNode(ctx, number, func(s *session, n Node, ns *nodeState) error {
		if _, err := s.st.node(other); err != nil {
			return err
		}
		if other == number {
			return fmt.Errorf("%w: %s cannot be cut from itself", ErrBadArgument, n.Name)
		}
		if !ns.on() {
			return fmt.Errorf("%w: %s is powered off", ErrBadArgument, n.Name)
		}
		if slices.Contains(ns.CutOff, other) {
			return nil
		}
		return s.setCutOff(ctx, ns, append(slices.Clone(ns.CutOff), other))
	})
}

// HealNode undoes CutNode, and CutNodeFrom from whichever side it was done.
func (l *Lab) HealNode(ctx context.Context, number int) error {
	return l.withNode(ctx, number, func(s *session, n Node, ns *nodeState) error {
		if ns.Cut {
			if _, err := run(ctx, "ip", "link", "set", n.link, "up"); err != nil {
				return err
			}
			if err := s.change(func(*state) { ns.Cut = false }); err != nil {
				return err
			}
		}
		if len(ns.CutOff) > 0 {
			if err := s.setCutOff(ctx, ns, nil); err != nil {
				return err
			}
		}
		for _, other := range s.st.Nodes {
			if i := slices.Index(other.CutOff, number); i >= 0 {
				if err := s.setCutOff(ctx, other, slices.Delete(slices.Clone(other.CutOff), i, i+1)); err != nil {
					return err
				}
			}
		}
		return s.routeServices(ctx)
	})
}

func (s *session) setCutOff(ctx context.Context, ns *nodeState, from []int) error {
	var others []Node
	for _, number := range from {
		n, err := planNode(number)
		if err != nil {
			return err
		}
		others = append(others, n)
	}
	if _, err := runWith(ctx, cutRules(others), enter(ns.Init.PID, "nft", "-f", "-")...); err != nil {
		return err
	}
	return s.change(func(*state) { ns.CutOff = from })
}

// NodeCommand is a command that will run inside a node's namespaces, as if
// somebody had logged in there.
func (l *Lab) NodeCommand(ctx context.Context, number int, argv ...string) (*exec.Cmd, error) {
	if len(argv) == 0 {
		return nil, fmt.Errorf("%w: no command to run", ErrBadArgument)
	}
	st, err := l.load()
	if err != nil {
		return nil, err
	}
	if st == nil {
		return nil, fmt.Errorf("%w in %s: run \"lab up\" first", ErrNoLab, l.dir)
	}
	ns, err := st.node(number)
	if err != nil {
		return nil, err
	}
	if !ns.on() {
		return nil, fmt.Errorf("%w: n%d is powered off", ErrBadArgument, number)
	}
	full := enter(ns.Init.PID, argv...)
	cmd := exec.CommandContext(ctx, full[0], full[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+l.path())
	return cmd, nil
}

func (l *Lab) withNode(ctx context.Context, number int, do func(*session, Node, *nodeState) error) error {
	s, err := l.beginUp(ctx)
	if err != nil {
		return err
	}
	defer s.end()
	ns, err := s.st.node(number)
	if err != nil {
		return err
	}
	n, err := planNode(number)
	if err != nil {
		return err
	}
	return do(s, n, ns)
}
