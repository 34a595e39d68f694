package procs

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
	"github.com/flarekv/flare/proto/topology"
)

// TestImportFlareXML changes the index server of a running cluster: a recorded
// flare.xml goes to a new controller, and the nodes, which do not start again, hear
// from that one from then on. One of them is of the C++ kind, and was down.
func TestImportFlareXML(t *testing.T) {
	t.Parallel()
	// The nodes run under an original index, which is not asked any more.
	old := listenScripted(t, "127.0.0.1:0", originalIndex("END\r\n", originalMeta))
	master, spare := startFlared(t, old.addr, "--replication-type=async"), startFlared(t, old.addr, "--replication-type=async")
	master.await(t)
	spare.await(t)
	plain := listenScripted(t, "127.0.0.1:0", func(_ int, request string) string {
		if request == "ping\r\n" || request == "END\r\n" {
			return "OK\r\n" // the latter is the end of a map
		}
		return ""
	})
	_, plainPort, _ := net.SplitHostPort(plain.addr)
	recorded, err := RecordedFlareXML("../../controller/index/testdata/flarei-index.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	ports := strings.NewReplacer("19301", master.port, "19304", plainPort, "19305", spare.port)
	xml := ports.Replace(recorded)

	dir := t.TempDir()
	addrs, err := FreeAddrs(4)
	if err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(dir, "cluster.yaml")
	if err := os.WriteFile(manifest, []byte("apiVersion: flarekv.io/v1\nkind: FlareCluster\nmetadata: {name: x}\nspec: {partitions: 2, replicas: 2, replication: {mode: async}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := &Cluster{opts: Options{BinDir: binDir, Dir: dir}}
	p, err := c.process("controller", "flare-controller", "--standalone", manifest, "--state-dir", filepath.Join(dir, "state"),
		"--index", addrs[0], "--grpc", addrs[1], "--http", addrs[2], "--metrics", addrs[3])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if log, _ := os.ReadFile(p.LogFile); t.Failed() || strings.Contains(string(log), "DATA RACE") {
			t.Errorf("controller:\n%s", log[max(0, len(log)-6000):])
		}
	})
	conn, err := grpc.NewClient(addrs[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	api := controllerv1.NewControllerServiceClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	send := func(xml string, dry bool) (*controllerv1.ImportFlareXMLResponse, error) {
		return api.ImportFlareXML(ctx, &controllerv1.ImportFlareXMLRequest{Content: []byte(xml), DryRun: dry}, grpc.WaitForReady(true))
	}
	// In the recording a partition was being prepared. What the refusal asks for is done.
	eventually(t, patience, "the controller leads", func() error {
		if _, err := send(xml, true); reasonOf(err) != "map_incomplete" {
			return fmt.Errorf("as recorded: %v, want map_incomplete", err)
		}
		return nil
	})
	if xml, err = FinishPreparing(recorded); err != nil {
		t.Fatal(err)
	}
	xml = ports.Replace(xml)
	if _, err := send("<xml/>", false); reasonOf(err) != "not_flare_xml" {
		t.Errorf("another file: %v", err)
	}
	if r, err := send(xml, true); err != nil || !r.GetOutcome().GetDryRun() || r.GetNodes() != 4 || r.GetPartitions() != 2 || r.GetMapVersion() != 54 {
		t.Fatalf("dry run: %v, %v", r, err)
	}
	if r, err := send(xml, false); err != nil || len(r.GetOutcome().GetChanges()) < 4 {
		t.Fatalf("import: %v, %v", r, err)
	}
	if _, err := send(xml, false); reasonOf(err) != "state_exists" {
		t.Errorf("once more: %v", err)
	}
	// The C++ node takes its partition up again as soon as it answers.
	eventually(t, patience, "every node is what it was", func() error {
		r, err := api.GetTopology(ctx, &controllerv1.GetTopologyRequest{})
		if err != nil {
			return err
		}
		got := map[string]string{}
		for _, n := range r.GetTopology().GetNodes() {
			partition := "-"
			if n.Partition != nil {
				partition = fmt.Sprint(n.GetPartition())
			}
			got[n.GetNode()] = fmt.Sprintf("%v %v %s %d", n.GetRole(), n.GetState(), partition, n.GetBalance())
		}
		want := map[string]string{
			master.addr: "ROLE_MASTER STATE_ACTIVE 0 2", plain.addr: "ROLE_MASTER STATE_ACTIVE 1 1",
			spare.addr: "ROLE_PROXY STATE_ACTIVE - 0", "127.0.0.1:19303": "ROLE_PROXY STATE_DOWN - 0",
		}
		if fmt.Sprint(got) != fmt.Sprint(want) || r.GetTopology().GetMapVersion() <= 54 {
			return fmt.Errorf("version %d, %v, want %v", r.GetTopology().GetMapVersion(), got, want)
		}
		return nil
	})
	plain.await(t, "the C++ node hears its place", func(requests []string) bool {
		return strings.Contains(strings.Join(requests, ""), "NODE 127.0.0.1 "+plainPort+" 0 0 1 1 19\r\n")
	})
	// And the real ones serve by the new map: a key of partition 0, through the proxy.
	eventually(t, patience, "a write through the proxy reaches the master", func() error {
		nc, err := net.DialTimeout("tcp", spare.addr, time.Second)
		if err != nil {
			return err
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprint(nc, "set "+keyOfPartition(t, 0, 2)+" 0 0 1\r\nx\r\n")
		got := make([]byte, len("STORED\r\n"))
		if n, err := nc.Read(got); err != nil || string(got[:n]) != "STORED\r\n" {
			return fmt.Errorf("%q, %v", got[:n], err)
		}
		return nil
	})
}

// keyOfPartition returns a key that belongs to a partition of so many.
func keyOfPartition(t *testing.T, partition, partitions int) string {
	t.Helper()
	r, err := topology.NewResolver(topology.DefaultMeta())
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		if key := fmt.Sprint("key", i); r.Partition([]byte(key), partitions) == partition {
			return key
		}
	}
}
