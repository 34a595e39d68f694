package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/flarekv/flare/images/gobuild"
)

// tools are programs of the machine's own that the lab calls.
var tools = []struct{ program, deb string }{
	{"ip", "iproute2"},
	{"iptables", "iptables"}, // the kubelet and the portmap plugin call it
	{"mkfs.ext4", "e2fsprogs"},
	{"mount", "mount"},
	{"nft", "nftables"},
	{"nsenter", "util-linux"},
}

// unpacked are Debian packages that are taken apart and not installed: no
// daemon of theirs shall start.
var unpacked = []struct{ deb, proof string }{
	{"containerd", "usr/bin/containerd"},
	{"runc", "usr/sbin/runc"},
	{"containernetworking-plugins", "usr/lib/cni/bridge"},
}

// kubeParts are the names under which the one Kubernetes binary is called.
var kubeParts = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler",
	"kubectl", "kubelet", "volume-provisioner"}

var goPrograms = []string{"./cmd/kube", "./cmd/coredns", "./cmd/pause", "helm.sh/helm/v4/cmd/helm", "github.com/fullstorydev/grpcurl/cmd/grpcurl"}

// Build makes or fetches everything that Up needs, and does nothing that is
// done already. The first time takes many minutes.
func (l *Lab) Build(ctx context.Context, w io.Writer) error {
	say := newProgress(w)
	repo, err := repository()
	if err != nil {
		return err
	}
	for _, dir := range []string{l.BinDir(), filepath.Join(l.cache, "images")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := l.installPackages(ctx, say); err != nil {
		return fmt.Errorf("install Debian packages: %w", err)
	}
	if err := l.buildPrograms(ctx, say, filepath.Join(repo, "e2e/lab/kubernetes")); err != nil {
		return fmt.Errorf("build programs: %w", err)
	}
	for _, archive := range l.ownImages() {
		program := l.bin(strings.TrimSuffix(filepath.Base(archive), ".tar"))
		if !imageStale(archive, program) {
			continue
		}
		if err := writeImage(archive, imageName(archive), program, runtime.GOARCH); err != nil {
			return fmt.Errorf("image %s: %w", archive, err)
		}
		say.step("wrote image %s", imageName(archive))
	}
	say.step("built in %s", l.cache)
	return l.built()
}

// built tells what is missing of a build.
func (l *Lab) built() error {
	var missing []string
	need := func(path string) {
		if _, err := os.Stat(path); err != nil {
			missing = append(missing, path)
		}
	}
	for _, p := range kubeParts {
		need(l.bin(p))
	}
	need(l.bin("pause"))
	for _, p := range unpacked {
		need(filepath.Join(l.cache, "deb", p.proof))
	}
	for _, archive := range l.ownImages() {
		need(archive)
	}
	for _, t := range tools {
		if _, err := exec.LookPath(t.program); err != nil {
			missing = append(missing, t.program)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: not built yet: %s: run \"lab build\" first", ErrBadArgument, strings.Join(missing, ", "))
	}
	return nil
}

func (l *Lab) installPackages(ctx context.Context, say *progress) error {
	var install, unpack []string
	for _, t := range tools {
		if _, err := exec.LookPath(t.program); err != nil {
			install = append(install, t.deb)
		}
	}
	// runc is unpacked and so brings no dependencies of its own.
	if found, _ := filepath.Glob("/usr/lib/*/libseccomp.so.2"); len(found) == 0 {
		install = append(install, "libseccomp2")
	}
	for _, p := range unpacked {
		if _, err := os.Stat(filepath.Join(l.cache, "deb", p.proof)); err != nil {
			unpack = append(unpack, p.deb)
		}
	}
	if len(install)+len(unpack) == 0 {
		return nil
	}
	if err := say.during(ctx, "apt-get update", "", nil, "apt-get", "update", "-qq"); err != nil {
		return err
	}
	if len(install) > 0 {
		what := "install " + strings.Join(install, " ")
		argv := slices.Concat([]string{"apt-get", "install", "-y", "-qq", "--no-install-recommends"}, install)
		if err := say.during(ctx, what, "", []string{"DEBIAN_FRONTEND=noninteractive"}, argv...); err != nil {
			return err
		}
	}
	if len(unpack) == 0 {
		return nil
	}
	downloads, err := os.MkdirTemp("", "flare-lab-deb-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(downloads)
	what := "download " + strings.Join(unpack, " ")
	// The sandboxed downloader could not write into a directory of root's.
	argv := slices.Concat([]string{"apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq"}, unpack)
	if err := say.during(ctx, what, downloads, nil, argv...); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(downloads, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if _, err := run(ctx, "dpkg", "-x", deb, filepath.Join(l.cache, "deb")); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) buildPrograms(ctx context.Context, say *progress, module string) error {
	env := []string{"CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=readonly -buildvcs=false"}
	version := func(path string) (string, error) {
		cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", path)
		cmd.Dir, cmd.Env = module, append(os.Environ(), env...)
		out, err := cmd.Output()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return strings.TrimSpace(string(out)), err
	}
	kube, err := version("k8s.io/kubernetes")
	if err != nil {
		return err
	}
	helm, err := version("helm.sh/helm/v4")
	if err != nil {
		return err
	}
	say.step("build Kubernetes %s, CoreDNS, helm, grpcurl ...", kube)
	args := slices.Concat([]string{"-ldflags", linkFlags(kube, helm), "-o", l.BinDir() + "/"}, goPrograms)
	if err := gobuild.Run(ctx, module, env, func(at string) { say.step("  %s", at) }, args...); err != nil {
		return err
	}
	for _, part := range kubeParts {
		link := l.bin(part)
		if to, err := os.Readlink(link); err == nil && to == "kube" {
			continue
		}
		if err := errors.Join(os.RemoveAll(link), os.Symlink("kube", link)); err != nil {
			return err
		}
	}
	return nil
}

// linkFlags tell the programs the versions that a release build would know:
// charts ask the API server and helm for them.
func linkFlags(kube, helm string) string {
	minor, _, _ := strings.Cut(strings.TrimPrefix(kube, "v1."), ".")
	flags := []string{"-s", "-w"}
	set := func(pkg string, values ...string) {
		for _, v := range values {
			flags = append(flags, "-X", pkg+"."+v)
		}
	}
	set("k8s.io/component-base/version", "gitVersion="+kube, "gitMajor=1", "gitMinor="+minor,
		"gitTreeState=clean", "gitCommit=none", "buildDate=1970-01-01T00:00:00Z")
	set("helm.sh/helm/v4/pkg/chart/common", "k8sVersionMajor=1", "k8sVersionMinor="+minor)
	set("helm.sh/helm/v4/internal/version", "version="+helm, "kubeClientVersionMajor=1", "kubeClientVersionMinor="+minor)
	return strings.Join(flags, " ")
}

// during runs a command and says every few seconds that it is still at it.
func (p *progress) during(ctx context.Context, what, dir string, env []string, argv ...string) error {
	p.step("%s ...", what)
	began := time.Now()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(8 * time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", what, err, out.String())
			}
			p.step("%s: done in %.1fs", what, time.Since(began).Seconds())
			return nil
		case <-tick.C:
			p.step("%s: still at it, %.0fs", what, time.Since(began).Seconds())
		}
	}
}
