package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// fillFile takes up the room in a filled volume.
const fillFile = ".lab-fill"

// volumesDir is where volumes are mounted, in the machine and in every node.
func (l *Lab) volumesDir() string { return filepath.Join(l.dir, "volumes") }

// FillVolume leaves about leave bytes free in a claim's volume: with 0, the
// next byte its pod wants to add fails with ENOSPC. Overwriting goes on to
// work, as on any full disk. It may be called again to leave more or less.
func (l *Lab) FillVolume(ctx context.Context, namespace, claim string, leave int64) error {
	if leave < 0 {
		return fmt.Errorf("%w: cannot leave %d bytes free: give 0 or more", ErrBadArgument, leave)
	}
	dir, err := l.VolumePath(ctx, namespace, claim)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, fillFile)
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	// Room is taken by allocation alone: nothing is written, so it costs the
	// machine neither time nor disk. One call may get less than statfs
	// promises (extents need blocks too), hence the smaller and smaller steps.
	var size int64
	for shrink := int64(1); ; {
		var fs syscall.Statfs_t
		if err := syscall.Fstatfs(int(f.Fd()), &fs); err != nil {
			return fmt.Errorf("statfs %s: %w", dir, err)
		}
		step := (int64(fs.Bavail)*fs.Bsize - leave) / shrink / fs.Bsize * fs.Bsize
		if step <= 0 {
			return nil
		}
		err := syscall.Fallocate(int(f.Fd()), 0, size, step)
		switch {
		case err == nil:
			size += step
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.ENOSPC):
			shrink *= 2
		default:
			return fmt.Errorf("fill %s: %w", dir, err)
		}
	}
}

// FreeVolume gives back what FillVolume took.
func (l *Lab) FreeVolume(ctx context.Context, namespace, claim string) error {
	dir, err := l.VolumePath(ctx, namespace, claim)
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, fillFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// VolumePath is where a claim's volume is mounted on the machine.
func (l *Lab) VolumePath(ctx context.Context, namespace, claim string) (string, error) {
	name, err := l.Kubectl(ctx, "-n", namespace, "get", "pvc", claim, "-o", "jsonpath={.spec.volumeName}")
	if err != nil {
		return "", err
	}
	if len(name) == 0 {
		return "", fmt.Errorf("%w: claim %s/%s has no volume yet: a pod has to use it first", ErrBadArgument, namespace, claim)
	}
	path, err := l.Kubectl(ctx, "get", "pv", string(name), "-o", "jsonpath={.spec.local.path}")
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(string(path), l.volumesDir()+"/") {
		return "", fmt.Errorf("%w: volume %s of %s/%s is not one of the lab's", ErrBadArgument, name, namespace, claim)
	}
	return string(path), nil
}

// mountVolumes makes the directory of volumes a shared mount, from which the
// nodes' namespaces learn what is mounted in it later.
func (l *Lab) mountVolumes() error {
	dir := l.volumesDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	// A group of its own first, should the machine's root be shared.
	for _, how := range []uintptr{syscall.MS_PRIVATE, syscall.MS_SHARED} {
		if err := syscall.Mount("", dir, "", how, ""); err != nil {
			return fmt.Errorf("make %s a shared mount: %w", dir, err)
		}
	}
	return nil
}

// unmountAll unmounts everything below (and at) dir, innermost first.
func unmountAll(dir string) error {
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if m.point == dir || strings.HasPrefix(m.point, dir+"/") {
			if err := syscall.Unmount(m.point, syscall.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", m.point, err)
			}
		}
	}
	return nil
}

func loopDevices() ([]string, error) {
	return filepath.Glob("/dev/loop[0-9]*")
}

// removeLoops removes the loop devices that were added since before. One
// still in use stays.
func removeLoops(before []string) error {
	const loopRemove = 0x4C81 // LOOP_CTL_REMOVE
	now, err := loopDevices()
	if err != nil {
		return err
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	for _, device := range now {
		var number uintptr
		if slices.Contains(before, device) {
			continue
		}
		if _, err := fmt.Sscanf(device, "/dev/loop%d", &number); err != nil {
			continue // a partition of one
		}
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, control.Fd(), loopRemove, number)
		if errno != 0 && errno != syscall.EBUSY && errno != syscall.ENODEV {
			return fmt.Errorf("remove %s: %w", device, errno)
		}
	}
	return nil
}

// loopsFree fails while a loop device is backed by a file below dir.
func loopsFree(dir string) error {
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, b := range backing {
		file, err := os.ReadFile(b)
		if err == nil && strings.HasPrefix(string(file), dir+"/") {
			return fmt.Errorf("%s holds %s", b, strings.TrimSpace(string(file)))
		}
	}
	return nil
}
