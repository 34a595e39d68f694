package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// controller is the process that is measured.
type controller struct {
	index, grpc, metrics string // addresses
	dir, log             string
	cmd                  *exec.Cmd
	ended                chan struct{}
}

func startController(dir, bin string, partitions, replicas int) (*controller, error) {
	manifest := filepath.Join(dir, "cluster.yaml")
	spec := fmt.Sprintf("apiVersion: flarekv.io/v1\nkind: FlareCluster\nmetadata: {name: bench}\nspec: {partitions: %d, replicas: %d}\n", partitions, replicas)
	if err := os.WriteFile(manifest, []byte(spec), 0o644); err != nil {
		return nil, err
	}
	var addrs [4]string
	for i := range addrs {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		addrs[i] = ln.Addr().String()
	}
	c := &controller{index: addrs[0], grpc: addrs[1], metrics: addrs[3], dir: dir, log: filepath.Join(dir, "controller.log"), ended: make(chan struct{})}
	log, err := os.Create(c.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c.cmd = exec.Command(filepath.Join(bin, "flare-controller"), "--standalone", manifest, "--state-dir", filepath.Join(dir, "state"),
		"--index", addrs[0], "--grpc", addrs[1], "--http", addrs[2], "--metrics", addrs[3])
	c.cmd.Stdout, c.cmd.Stderr = log, log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = c.cmd.Wait()
		close(c.ended)
	}()
	for {
		conn, err := net.Dial("tcp", c.index)
		if err == nil {
			conn.Close()
			return c, nil
		}
		select {
		case <-c.ended:
			return nil, fmt.Errorf("the controller ended:\n%s", c.logTail())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (c *controller) stop() {
	_ = c.cmd.Process.Kill()
	<-c.ended
}

func (c *controller) logTail() string {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-3000):])
}

// stateSize returns how long the durable state is in the form that a ConfigMap has.
func (c *controller) stateSize() (int, error) {
	b, err := os.ReadFile(filepath.Join(c.dir, "state", "state.json"))
	if err != nil {
		return 0, err
	}
	var compact bytes.Buffer
	err = json.Compact(&compact, b)
	return compact.Len(), err
}

// memory returns what the process has in memory now, and has had at most, in bytes.
func (c *controller) memory() (now, most int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		return 0, 0
	}
	field := func(name string) int {
		_, rest, _ := strings.Cut(string(b), name+":")
		kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		n, _ := strconv.Atoi(kib)
		return n << 10
	}
	return field("VmRSS"), field("VmHWM")
}

// processorTime returns what the process has used so far.
func (c *controller) processorTime() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	// The fields behind the name, which may hold spaces; ticks are of 10 ms.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// stepTimes is what the controller's own metrics say of its steps, by kind.
type stepTimes map[string]struct {
	count   float64
	seconds float64
}

func (c *controller) steps(ctx context.Context) (stepTimes, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.metrics+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	t := stepTimes{}
	for line := range strings.Lines(string(body)) {
		for _, kind := range []string{"quiet", "full"} {
			e := t[kind]
			if v, ok := strings.CutPrefix(line, `flare_controller_step_seconds_sum{kind="`+kind+`"} `); ok {
				e.seconds, _ = strconv.ParseFloat(strings.TrimSpace(v), 64)
			} else if v, ok := strings.CutPrefix(line, `flare_controller_step_seconds_count{kind="`+kind+`"} `); ok {
				e.count, _ = strconv.ParseFloat(strings.TrimSpace(v), 64)
			}
			t[kind] = e
		}
	}
	return t, nil
}

func (t stepTimes) add(o stepTimes) stepTimes { return t.combine(o, 1) }
func (t stepTimes) sub(o stepTimes) stepTimes { return t.combine(o, -1) }

func (t stepTimes) combine(o stepTimes, sign float64) stepTimes {
	sum := stepTimes{}
	for _, kind := range []string{"quiet", "full"} {
		e := t[kind]
		e.count += sign * o[kind].count
		e.seconds += sign * o[kind].seconds
		sum[kind] = e
	}
	return sum
}

func (t stepTimes) String() string {
	var parts []string
	for _, kind := range []string{"full", "quiet"} {
		if e := t[kind]; e.count > 0 {
			parts = append(parts, fmt.Sprintf("%.0f %s of %.0f ns", e.count, kind, 1e9*e.seconds/e.count))
		}
	}
	return strings.Join(parts, ", ")
}

// loadAverage is of the last minute.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	return strings.Fields(string(b))[0]
}
