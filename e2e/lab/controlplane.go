package lab

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

//go:embed files/cluster.yaml
var clusterManifests string

// startAPI starts etcd and the API server and waits until it answers.
func (s *session) startAPI(ctx context.Context) error {
	pki := func(name string) string { return filepath.Join(s.dir, "pki", name) }
	data := filepath.Join(s.dir, "etcd")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	client := fmt.Sprintf("http://127.0.0.1:%d", etcdClientPort)
	peer := fmt.Sprintf("http://127.0.0.1:%d", etcdPeerPort)
	etcd, err := s.startControl("etcd", s.bin("etcd"),
		"--name=lab", "--data-dir="+data, "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=lab="+peer)
	if err != nil {
		return err
	}
	api, err := s.startControl("kube-apiserver", s.bin("kube-apiserver"),
		"--etcd-servers="+client,
		fmt.Sprintf("--bind-address=%s", controlAddr), fmt.Sprintf("--advertise-address=%s", controlAddr),
		fmt.Sprintf("--secure-port=%d", apiPort),
		"--tls-cert-file="+pki("server.crt"), "--tls-private-key-file="+pki("server.key"),
		"--token-auth-file="+pki("tokens.csv"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
		fmt.Sprintf("--service-cluster-ip-range=%s", serviceNet),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+pki("accounts.key"), "--service-account-signing-key-file="+pki("accounts.key"),
		"--kubelet-preferred-address-types=InternalIP",
		// Webhooks are called by pod address: no kube-proxy runs out here.
		"--enable-aggregator-routing")
	if err != nil {
		return err
	}
	return waitFor(ctx, "the API server", 90*time.Second, 200*time.Millisecond, func(ctx context.Context) error {
		for name, p := range map[string]process{"etcd": etcd, "kube-apiserver": api} {
			if !p.alive() {
				return giveUp(s.endedError(name))
			}
		}
		_, err := s.Kubectl(ctx, "get", "--raw", "/readyz")
		return err
	})
}

// startControllers starts what works against the API server.
func (s *session) startControllers() error {
	pki := func(name string) string { return filepath.Join(s.dir, "pki", name) }
	if _, err := s.startControl("kube-controller-manager", s.bin("kube-controller-manager"),
		"--kubeconfig="+filepath.Join(s.dir, "controller-manager.conf"), "--bind-address=127.0.0.1",
		"--leader-elect=false", "--use-service-account-credentials",
		"--service-account-private-key-file="+pki("accounts.key"), "--root-ca-file="+pki("ca.crt"),
		"--allocate-node-cidrs=false",
		// A dead node is noticed after 12 s, not after the usual 50.
		"--node-monitor-period=2s", "--node-monitor-grace-period=12s",
	); err != nil {
		return err
	}
	if _, err := s.startControl("kube-scheduler", s.bin("kube-scheduler"),
		"--kubeconfig="+filepath.Join(s.dir, "scheduler.conf"), "--bind-address=127.0.0.1", "--leader-elect=false",
	); err != nil {
		return err
	}
	_, err := s.startControl("volume-provisioner", s.bin("volume-provisioner"), s.Kubeconfig(), s.volumesDir())
	return err
}

func (s *session) applyManifests(ctx context.Context) error {
	_, err := runWith(ctx, clusterManifests, s.kubectlArgs("apply", "-f", "-")...)
	return err
}

// waitNodes waits until the nodes are Ready by a report made after since: the
// API server shows a dead node's last report for a while.
func (l *Lab) waitNodes(ctx context.Context, since time.Time, nodes ...Node) error {
	for _, n := range nodes {
		err := waitFor(ctx, "node "+n.Name+" to be Ready", 90*time.Second, 250*time.Millisecond, func(ctx context.Context) error {
			lease, err := l.Kubectl(ctx, "-n", "kube-node-lease", "get", "lease", n.Name, "-o", "jsonpath={.spec.renewTime}")
			if err != nil {
				return err
			}
			renewed, err := time.Parse(time.RFC3339, string(lease))
			if err != nil || renewed.Before(since) {
				return fmt.Errorf("last sign of life at %q", lease)
			}
			ready, err := l.Kubectl(ctx, "get", "node", n.Name, "-o",
				`jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.message}{end}`)
			if err != nil {
				return err
			}
			if !strings.HasPrefix(string(ready), "True") {
				return fmt.Errorf("condition Ready is %s", ready)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) waitDNS(ctx context.Context) error {
	_, err := l.Kubectl(ctx, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")
	return err
}

func (l *Lab) endedError(name string) error {
	return fmt.Errorf("%s ended; the end of %s:\n%s", name, l.logFile(name), tail(l.logFile(name), 12))
}

// tail is the last lines of a log, for an error that has to explain itself.
func tail(file string, lines int) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
