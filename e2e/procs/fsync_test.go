package procs

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// TestSyncWritesReachTheDisk counts the system's answers to fdatasync of the log, below
// the process: with rocksdb-sync-writes there is one for every write that a client
// waits for, without it there is none. It is switched by SIGHUP and by the agent's call.
func TestSyncWritesReachTheDisk(t *testing.T) {
	dir, err := os.MkdirTemp("", "fsync") // t.TempDir may be longer than a socket's path may be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	counter, file, socket := filepath.Join(dir, "fsync.so"), filepath.Join(dir, "count"), filepath.Join(dir, "agent.sock")
	if out, err := exec.CommandContext(t.Context(), "gcc", "-shared", "-fPIC", "-O2", "-o", counter, "testdata/fsync/fsync.c", "-ldl").CombinedOutput(); err != nil {
		t.Fatalf("build the counter: %v\n%s", err, out)
	}
	if err := os.WriteFile(file, make([]byte, 8), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LD_PRELOAD", counter)
	t.Setenv("FSYNC_COUNT", file)
	m := startMember(t, "0 0 0 1", "--agent-socket="+socket)
	os.Unsetenv("LD_PRELOAD")

	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	node := agentv1.NewNodeServiceClient(conn)

	count := func() uint64 {
		t.Helper()
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return binary.LittleEndian.Uint64(b)
	}
	const writes = 50
	client := dialWire(t, m.addr, nil)
	// syncs returns the calls during so many writes, one after the other.
	syncs := func() uint64 {
		t.Helper()
		before := count()
		for i := range writes {
			client.ask(t, "a write", fmt.Sprintf("set k%d 0 0 1\r\nx\r\n", i), "STORED\r\n", false)
		}
		return count() - before
	}
	for _, how := range []struct {
		name string
		tell func(text string)
	}{
		{"SIGHUP", func(text string) { m.configure(t, text) }},
		{"agent", func(text string) {
			if resp, err := node.ApplyOptions(t.Context(), &agentv1.ApplyOptionsRequest{Text: text + "\n"}); err != nil || !resp.GetAccepted() {
				t.Fatalf("%s: %v, %v", text, resp, err)
			}
		}},
	} {
		for _, on := range []bool{false, true, false} {
			how.tell(fmt.Sprintf("rocksdb-sync-writes = %v", on))
			m.until(t, "rocksdb_sync_writes", fmt.Sprint(on))
			switch got := syncs(); {
			case on && got < writes:
				t.Errorf("%s, on: %d writes were answered after %d calls of fdatasync", how.name, writes, got)
			case !on && got > writes/10: // what the process syncs beside its writes may count
				t.Errorf("%s, off: %d writes took %d calls of fdatasync", how.name, writes, got)
			}
		}
	}
}

// TestReloadNamesWhatIsWrong sends SIGHUP for a file with wrong lines, and then for a
// right one, with options of RocksDB in it.
func TestReloadNamesWhatIsWrong(t *testing.T) {
	m := startMember(t, "0 0 0 1")
	m.configure(t, "rocksdb-sync-writes = maybe", "rocksdb-option-write_buffer_size = 2097152", "rocksdb-option-wal_dir = /x")
	eventually(t, patience, "each wrong line is in the log", func() error {
		log, err := os.ReadFile(m.LogFile)
		for _, want := range []string{"reason=invalid_value option=rocksdb-sync-writes line=1", "reason=reserved option=rocksdb-option-wal_dir line=3"} {
			if !strings.Contains(string(log), want) {
				return fmt.Errorf("there is no %s: %v", want, err)
			}
		}
		return nil
	})
	setting := func(want string) error {
		nc, err := net.DialTimeout("tcp", m.addr, patience)
		if err != nil {
			return err
		}
		defer nc.Close()
		const end = "END\r\n"
		var got strings.Builder
		fmt.Fprint(nc, "stats settings\r\n")
		for b := make([]byte, 4096); !strings.HasSuffix(got.String(), end); {
			n, err := nc.Read(b)
			if err != nil {
				return err
			}
			got.Write(b[:n])
		}
		if line := "STAT rocksdb-option-write_buffer_size " + want + "\r\n"; !strings.Contains(got.String(), line) {
			return fmt.Errorf("stats settings has no %q", line)
		}
		return nil
	}
	if err := setting("16777216"); err != nil {
		t.Errorf("after a refused file: %v", err)
	}
	m.configure(t, "rocksdb-option-write_buffer_size = 2097152")
	eventually(t, patience, "the right file is in force", func() error { return setting("2097152") })
}
