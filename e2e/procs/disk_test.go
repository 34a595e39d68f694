package procs

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// ownMounts runs the test in a process with mounts of its own, which needs no
// cleaning up, and as somebody who may mount: root, or the root of a user
// namespace. It returns true in that process.
func ownMounts(t *testing.T) bool {
	const variable = "FLARE_TEST_MOUNTS"
	if os.Getenv(variable) != "" {
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			t.Fatalf("make mounts private: %v", err)
		}
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), variable+"=1", binDirVariable+"="+binDir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		t.Logf("%s", out)
	case errors.As(err, &exit):
		t.Errorf("%v\n%s", err, out)
	default:
		t.Fatalf("this test mounts a file system: run it as root, or allow user namespaces: %v", err)
	}
	return false
}

// A disk is a file system of its own, which can be filled.
type disk struct{ dir string }

func newDisk(t *testing.T, mib int) disk {
	t.Helper()
	dir, err := os.MkdirTemp("", "flare-disk-")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Fatalf("mount a file system in memory: %v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(syscall.Unmount(dir, syscall.MNT_DETACH), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	return disk{dir}
}

func (d disk) ballast() string { return filepath.Join(d.dir, "ballast") }

// fill leaves so many bytes free.
func (d disk) fill(t *testing.T, leave int64) {
	t.Helper()
	f, err := os.OpenFile(d.ballast(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	at := info.Size()
	for {
		var free syscall.Statfs_t
		if err := syscall.Statfs(d.dir, &free); err != nil {
			t.Fatal(err)
		}
		more := int64(free.Bavail)*free.Bsize - leave
		if more <= 0 {
			return
		}
		err := syscall.Fallocate(int(f.Fd()), 0, at, more)
		if err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		if err == nil {
			at += more
		} else if leave == 0 && more < 1<<20 {
			return // others were quicker
		}
	}
}

func (d disk) empty(t *testing.T) {
	t.Helper()
	if err := os.Remove(d.ballast()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

// onDisks starts a master with a replica, each on a disk of its own, and returns the
// master's disk first.
func onDisks(t *testing.T) (c *Cluster, m, replica *Node, disks [2]disk) {
	t.Helper()
	disks = [2]disk{newDisk(t, 256), newDisk(t, 256)}
	var dirs []string
	for _, d := range disks {
		dirs = append(dirs, filepath.Join(d.dir, "data"))
	}
	c = start(t, Options{Partitions: 1, Replicas: 2, DataDirs: dirs})
	m, replica = master(t, c, 0), replicas(t, c)[0]
	if m == c.Nodes[1] {
		disks[0], disks[1] = disks[1], disks[0]
	}
	pipelined(t, m.Addr, "before:", 2000, 500)
	return c, m, replica, disks
}

// readOnly waits until writes are refused for the reason, and checks that reads go
// on and nobody else has become master.
func readOnly(t *testing.T, c *Cluster, m *Node, reason string) {
	t.Helper()
	cl := client(m.Addr)
	defer cl.Close()
	eventually(t, patience, "writes are refused", func() error {
		err := cl.Set(&memcache.Item{Key: "refused", Value: []byte("v")})
		if err == nil || !strings.Contains(err.Error(), reason) {
			return fmt.Errorf("the answer is %v, want %s", err, reason)
		}
		return nil
	})
	for i := range 20 {
		if _, err := cl.Get(fmt.Sprintf("before:%d", i*100)); err != nil {
			t.Errorf("read on a full disk: %v", err)
		}
	}
	// For as long as a failover would take, had there been one.
	until := time.Now().Add(3 * time.Second)
	eventually(t, patience, "time", func() error {
		if now := master(t, c, 0); now != m {
			t.Fatalf("%s has become master because of a full disk", now.Addr)
		}
		if time.Now().Before(until) {
			return errors.New("not yet")
		}
		return nil
	})
}

func writable(t *testing.T, m *Node) {
	t.Helper()
	cl := client(m.Addr)
	defer cl.Close()
	eventually(t, patience, "writes are taken again", func() error {
		return cl.Set(&memcache.Item{Key: "again", Value: []byte("v")})
	})
}

// TestDiskFull leaves too little space on a master's disk, and on its replica's: it
// becomes read-only, says why, and recovers by itself.
func TestDiskFull(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	c, m, _, disks := onDisks(t)
	for _, d := range disks {
		d.fill(t, 40<<20)
	}
	readOnly(t, c, m, "disk_full")
	for _, d := range disks {
		d.empty(t)
	}
	writable(t, m)
	ready(t, c)
	equal(t, c)
}

// TestDiskFillsUpWhileWriting takes the last byte of a master's disk within a moment
// and under load, so that RocksDB itself fails to write and reports a background error.
func TestDiskFillsUpWhileWriting(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	c, m, _, disks := onDisks(t)
	ws, stop := load(t, c, 4, "")
	pause(rand.New(rand.NewPCG(1, 1)), 500, 501)
	disks[0].fill(t, 0)
	eventually(t, patience, "RocksDB fails to write", func() error {
		if !strings.Contains(logged(m.Flared, 0), "database write failed") {
			return errors.New("not in the log")
		}
		return nil
	})
	readOnly(t, c, m, "disk_full")
	if !m.Flared.Running() {
		t.Fatalf("flared has ended: %v", m.Flared.Err())
	}
	disks[0].empty(t)
	writable(t, m)
	stop()
	ready(t, c)
	d := equal(t, c)
	for _, w := range ws {
		for _, lost := range w.lost(d) {
			t.Error(lost)
		}
	}
	if now := master(t, c, 0); now != m {
		t.Errorf("%s is master", now.Addr)
	}
	// And it survives a restart: nothing on the disk is damaged.
	m.Flared.Kill()
	if err := m.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	ready(t, c)
	equal(t, c)
}

// TestReplicaDiskFull fills a replica's disk: its master goes on without it, it is
// not promoted, and it comes back by the log when there is space.
func TestReplicaDiskFull(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	c, m, replica, disks := onDisks(t)
	disks[1].fill(t, 40<<20)
	writable(t, m) // what the replica cannot apply keeps it waiting for as long as the timeout
	eventually(t, patience, "writes go on without the replica", func() error {
		cl := client(m.Addr)
		defer cl.Close()
		if err := cl.Set(&memcache.Item{Key: "alone", Value: []byte("v")}); err != nil {
			return err
		}
		top, err := c.Topology(t.Context())
		if err != nil {
			return err
		}
		if in := top.Partitions[0].InSyncReplicas; len(in) > 0 {
			return fmt.Errorf("in sync: %v", in)
		}
		return nil
	})
	pipelined(t, m.Addr, "without:", 1000, 100)
	disks[1].empty(t)
	ready(t, c)
	cameBackBy(t, replica, agentv1.Tier_TIER_WAL)
	equal(t, c)
}
