package lab

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/csv"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestOpen(t *testing.T) {
	t.Setenv("FLARE_LAB_CACHE", "/somewhere/built")
	for _, bad := range []string{"/run/lab", "/" + strings.Repeat("long", 20)} {
		if _, err := Open(bad); !errors.Is(err, ErrBadArgument) {
			t.Errorf("%s: %v, want ErrBadArgument", bad, err)
		}
	}
	t.Setenv("FLARE_LAB_DIR", "/somewhere/run")
	l, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	if l.Kubeconfig() != "/somewhere/run/admin.conf" || l.BinDir() != "/somewhere/built/bin" {
		t.Errorf("kubeconfig %s, programs %s", l.Kubeconfig(), l.BinDir())
	}
	if _, err := l.Nodes(); !errors.Is(err, ErrNoLab) {
		t.Errorf("nodes of no lab: %v, want ErrNoLab", err)
	}
}

func TestOpenFindsRepository(t *testing.T) {
	t.Setenv("FLARE_LAB_CACHE", "")
	l, err := Open("/somewhere/run")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(l.BinDir(), "/build/lab/bin") {
		t.Errorf("programs in %s", l.BinDir())
	}
}

// A state from before a reboot knows of no process, whatever its pids say.
func TestStateOfAnotherBoot(t *testing.T) {
	self, err := findProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	for id, alive := range map[string]bool{boot: true, "another": false} {
		l := &Lab{dir: t.TempDir()}
		s := &session{Lab: l, st: &state{Boot: id, Control: map[string]process{"etcd": self},
			Nodes: []*nodeState{{Number: 1, Init: self, Parts: map[string]process{"kubelet": self}}}}}
		if err := s.change(func(st *state) { st.Gateway = 1 }); err != nil {
			t.Fatal(err)
		}
		st, err := l.load()
		if err != nil {
			t.Fatal(err)
		}
		if st.Gateway != 1 || st.Nodes[0].on() != alive || st.Control["etcd"].alive() != alive {
			t.Errorf("boot %s: %+v", id, st)
		}
	}
}

func TestDead(t *testing.T) {
	self, err := findProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	st := &state{
		Control: map[string]process{"etcd": self, "kube-apiserver": {}},
		Nodes: []*nodeState{
			{Number: 1, Init: self, Parts: map[string]process{"containerd": self, "kube-proxy": self}},
			{Number: 2},
		},
	}
	if got, want := st.dead(), []string{"kube-apiserver", "n1/kubelet", "n2"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestMissingDirs(t *testing.T) {
	dir := t.TempDir()
	got := missingDirs(filepath.Join(dir, "a", "b"))
	if want := []string{filepath.Join(dir, "a"), filepath.Join(dir, "a", "b")}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := missingDirs(dir); got != nil {
		t.Errorf("%v of a directory that is there", got)
	}
}

func TestPKI(t *testing.T) {
	dir := t.TempDir()
	nodes, err := planNodes(2)
	if err != nil {
		t.Fatal(err)
	}
	if err := writePKI(dir, nodes); err != nil {
		t.Fatal(err)
	}
	pki := func(name string) string { return filepath.Join(dir, "pki", name) }
	pair, err := tls.LoadX509KeyPair(pki("server.crt"), pki("server.key"))
	if err != nil {
		t.Fatal(err)
	}
	caPEM, err := os.ReadFile(pki("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(caPEM)
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, name := range []string{controlAddr.String(), apiService.String(), "kubernetes.default.svc"} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	f, err := os.Open(pki("tokens.csv"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tokens, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for i, u := range users(nodes) {
		config, err := os.ReadFile(filepath.Join(dir, u.file))
		if err != nil {
			t.Fatal(err)
		}
		if tokens[i][1] != u.name || !strings.Contains(string(config), tokens[i][0]) {
			t.Errorf("%s does not have the token of %s", u.file, u.name)
		}
	}
}
