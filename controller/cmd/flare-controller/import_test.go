package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// xmlOf is a flare.xml of one partition, a replica and a dead proxy.
func xmlOf(nodes ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "<?xml version=\"1.0\"?>\n<!DOCTYPE boost_serialization>\n<boost_serialization signature=\"serialization::archive\" version=\"18\">\n<version>41</version>\n<node_map>\n<count>%d</count>\n", len(nodes))
	for i, n := range nodes {
		var name string
		var port, role, state, partition, balance int
		if _, err := fmt.Sscan(n, &name, &port, &role, &state, &partition, &balance); err != nil {
			panic(err)
		}
		fmt.Fprintf(&b, "<item><first>%s:%d</first><second><node_server_name>%s</node_server_name><node_server_port>%d</node_server_port><node_role>%d</node_role><node_state>%d</node_state><node_partition>%d</node_partition><node_balance>%d</node_balance><node_thread_type>%d</node_thread_type></second></item>\n",
			name, port, name, port, role, state, partition, balance, 16+i)
	}
	fmt.Fprintf(&b, "</node_map>\n<thread_type>%d</thread_type>\n</boost_serialization>\n", 16+len(nodes))
	return b.String()
}

// TestImport takes over the map of a C++ index server and serves it.
func TestImport(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	manifest := write("cluster.yaml", "apiVersion: flarekv.io/v1\nkind: FlareCluster\nmetadata: {name: x}\nspec: {partitions: 1, replicas: 2}\n")
	xml := write("flare.xml", xmlOf("127.0.0.1 1 0 0 0 1", "127.0.0.1 2 1 0 0 2", "127.0.0.1 3 2 2 -1 0"))
	two := write("two.xml", xmlOf("127.0.0.1 1 0 0 0 1", "127.0.0.1 2 0 0 1 1"))
	state := filepath.Join(dir, "state")
	load := func(file string, more ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"import", file, "--standalone", manifest, "--state-dir", state}, more...), &out, &bytes.Buffer{})
		return out.String(), err
	}

	if _, err := load(two); err == nil || !strings.Contains(err.Error(), "has 2 partitions, the FlareCluster asks for 1") {
		t.Errorf("two partitions: %v", err)
	}
	if _, err := load(manifest); err == nil || !strings.Contains(err.Error(), "not a flare.xml") {
		t.Errorf("another file: %v", err)
	}
	out, err := load(xml, "--dry-run")
	if err != nil || !strings.Contains(out, "would take over 3 nodes in 1 partitions at map version 41") {
		t.Errorf("dry run: %q, %v", out, err)
	}
	if _, err := os.Stat(filepath.Join(state, "state.json")); !os.IsNotExist(err) {
		t.Errorf("a dry run wrote a state: %v", err)
	}
	if out, err = load(xml); err != nil || !strings.Contains(out, "took over 3 nodes") {
		t.Fatalf("import: %q, %v", out, err)
	}
	if _, err := load(xml); err == nil || !strings.Contains(err.Error(), "state_exists") {
		t.Errorf("a second import: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	log := &indexAddress{found: make(chan string, 1)}
	go func() {
		done <- run(ctx, []string{"--standalone", manifest, "--state-dir", state, "--log-format=text",
			"--index=127.0.0.1:0", "--grpc=127.0.0.1:0", "--http=127.0.0.1:0", "--metrics=127.0.0.1:0"}, &bytes.Buffer{}, log)
	}()
	defer func() {
		cancel()
		<-done
	}()
	var addr string
	select {
	case addr = <-log.found:
	case err := <-done:
		t.Fatalf("the controller ended: %v", err)
	case <-t.Context().Done():
		t.Fatal("no controller")
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(conn, "stats nodes\r\n")
	var got []string
	for lines := bufio.NewScanner(conn); lines.Scan() && lines.Text() != "END"; {
		if strings.Contains(lines.Text(), ":role") || strings.Contains(lines.Text(), ":thread_type") {
			got = append(got, strings.TrimPrefix(lines.Text(), "STAT 127.0.0.1:"))
		}
	}
	want := "1:role master,1:thread_type 16,2:role slave,2:thread_type 17,3:role proxy,3:thread_type 18"
	if s := strings.Join(got, ","); s != want {
		t.Errorf("nodes are %s, want %s", s, want)
	}
}

// indexAddress finds the address of the index protocol in the log.
type indexAddress struct {
	found chan string
	done  bool
}

var listening = regexp.MustCompile(`msg=leading .*index=(127\.0\.0\.1:\d+)`)

func (l *indexAddress) Write(p []byte) (int, error) {
	if m := listening.FindSubmatch(p); m != nil && !l.done {
		l.done = true
		l.found <- string(m[1])
	}
	return len(p), nil
}
