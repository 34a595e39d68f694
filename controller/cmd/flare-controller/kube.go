package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/flarekv/flare/controller/admin"
	"github.com/flarekv/flare/controller/kube"
)

// kubeOptions is the part of the command line about Kubernetes.
type kubeOptions struct {
	cluster, namespace, pod         string
	statefulSet, service, keyFormat string
	podSelector, controllerSelector string
	lease, zoneLabel                string
	nodePort                        int
	kubeconfig                      string
}

func (o *kubeOptions) register(fs *flag.FlagSet) {
	fs.StringVar(&o.cluster, "cluster", "", "run in Kubernetes for the FlareCluster of this `name`")
	fs.StringVar(&o.namespace, "namespace", os.Getenv("POD_NAMESPACE"), "namespace of the FlareCluster; default: $POD_NAMESPACE, then this pod's")
	fs.StringVar(&o.pod, "pod-name", os.Getenv("POD_NAME"), "name of this pod; default: $POD_NAME, then the host's name")
	fs.StringVar(&o.statefulSet, "statefulset", "", "`name` of the data pods' StatefulSet; default: the cluster's")
	fs.StringVar(&o.service, "headless-service", "", "`name` of the data pods' headless Service; default: <cluster>-nodes")
	fs.StringVar(&o.keyFormat, "node-key-format", kube.DefaultKeyFormat, "how a pod registers: {pod}, {service}, {namespace} and {port} are replaced")
	fs.StringVar(&o.podSelector, "pod-selector", "", "labels of the data pods; default: those that the chart gives them")
	fs.StringVar(&o.controllerSelector, "controller-selector", "", "labels of the controller's pods; default: those that the chart gives them")
	fs.StringVar(&o.lease, "lease", "", "`name` of the Lease by which a leader is elected; default: <cluster>-controller")
	fs.StringVar(&o.zoneLabel, "zone-label", kube.DefaultZoneLabel, "label of a Kubernetes node that names its zone")
	fs.IntVar(&o.nodePort, "node-port", kube.DefaultNodePort, "`port` of flared in the data pods")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "`file` with the way to the API server; default: that of this pod")
}

// serviceAccountNamespace tells a pod its namespace.
const serviceAccountNamespace = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// complete fills in what the surroundings tell.
func (o *kubeOptions) complete() error {
	if o.namespace == "" {
		b, err := os.ReadFile(serviceAccountNamespace)
		if err != nil {
			return fmt.Errorf("%w: no --namespace, no $POD_NAMESPACE, and not in a pod: %w", errUsage, err)
		}
		o.namespace = strings.TrimSpace(string(b))
	}
	if o.pod == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("%w: no --pod-name and no $POD_NAME: %w", errUsage, err)
		}
		o.pod = name
	}
	chart := "app.kubernetes.io/instance=" + o.cluster + ",app.kubernetes.io/component="
	o.podSelector = cmp.Or(o.podSelector, chart+"node")
	o.controllerSelector = cmp.Or(o.controllerSelector, chart+"controller")
	return nil
}

// restConfig returns the way to the API server: the given file, or the pod's own.
func restConfig(kubeconfig string) (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	cfg.UserAgent = "flare-controller/" + version
	cfg.QPS, cfg.Burst = 50, 100
	return cfg, nil
}

// config returns what a controller of the cluster works with.
func (o *kubeOptions) config(log *slog.Logger) (kube.Config, *rest.Config, error) {
	if err := o.complete(); err != nil {
		return kube.Config{}, nil, err
	}
	rc, err := restConfig(o.kubeconfig)
	if err != nil {
		return kube.Config{}, nil, err
	}
	// client-go has one logger for the whole process.
	klog.SetSlogLogger(log)
	cfg := kube.Config{
		Namespace: o.namespace, Cluster: o.cluster, PodName: o.pod,
		StatefulSet: o.statefulSet, HeadlessService: o.service, KeyFormat: o.keyFormat, NodePort: o.nodePort,
		PodSelector: o.podSelector, ControllerSelector: o.controllerSelector,
		Lease: o.lease, ZoneLabel: o.zoneLabel, Logger: log,
	}
	if cfg.Kube, err = kubernetes.NewForConfig(rc); err != nil {
		return kube.Config{}, nil, fmt.Errorf("make a Kubernetes client: %w", err)
	}
	if cfg.Dynamic, err = dynamic.NewForConfig(rc); err != nil {
		return kube.Config{}, nil, fmt.Errorf("make a Kubernetes client: %w", err)
	}
	return cfg, rc, nil
}

// runKube waits for the cluster, stands for election, and leads when elected.
func (p *program) runKube(ctx context.Context) error {
	o := &p.options.kube
	cfg, rc, err := o.config(p.log)
	if err != nil {
		return err
	}
	cfg.Retried, cfg.Refused = p.admin.Metrics().APIRetried, p.admin.Metrics().Refused
	// A renewal of the lease waits for no other request, and not for long.
	lrc := rest.CopyConfig(rc)
	lrc.Timeout = kube.RenewDeadline / 2
	lock, err := kubernetes.NewForConfig(lrc)
	if err != nil {
		return fmt.Errorf("make a Kubernetes client: %w", err)
	}

	health := p.admin.Health()
	var logged string
	owner, err := kube.WaitCluster(ctx, cfg, func(err error) {
		if msg := err.Error(); msg != logged {
			logged = msg
			p.log.Warn("waiting for the FlareCluster", "cluster", o.cluster, "namespace", o.namespace, "error", err)
		}
		health.SetStandby(false, admin.ReasonWaitingForCluster)
	})
	if err != nil {
		return err
	}
	health.SetStandby(true, "")
	election := &kube.Election{Config: cfg, Owner: owner, Lock: lock, NewLeader: health.SetLeaderName}
	election.Contact = func(err error) { health.SetStandby(err == nil, admin.ReasonAPIServerUnreachable) }
	err = election.Run(ctx, func(ctx context.Context) error {
		// The cluster may have changed since: a reign begins with a fresh look.
		fresh, err := kube.GetCluster(ctx, cfg)
		if err != nil {
			return fmt.Errorf("read FlareCluster %s: %w", o.cluster, err)
		}
		backend, err := kube.NewBackend(cfg, fresh)
		if err != nil {
			return err
		}
		defer backend.Close()
		return p.lead(ctx, backend, election.Holds)
	})
	if kube.IsGone(err) {
		p.log.Info("the FlareCluster was deleted; a new controller waits for the next one", "cluster", o.cluster)
	}
	return err
}

// crdTimeout bounds the crd commands.
const crdTimeout = 2 * time.Minute

// runCRD carries out flare-controller crd apply|delete-unused.
func runCRD(ctx context.Context, args []string, stdout io.Writer) error {
	fs := flag.NewFlagSet("flare-controller crd", flag.ContinueOnError)
	kubeconfig := fs.String("kubeconfig", "", "`file` with the way to the API server; default: that of this pod")
	if len(args) == 0 {
		return fmt.Errorf("%w: flare-controller crd apply|delete-unused", errUsage)
	}
	verb := args[0]
	if err := fs.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if verb != "apply" && verb != "delete-unused" || fs.NArg() > 0 {
		return fmt.Errorf("%w: flare-controller crd apply|delete-unused", errUsage)
	}
	rc, err := restConfig(*kubeconfig)
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(rc)
	if err != nil {
		return fmt.Errorf("make a Kubernetes client: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, crdTimeout)
	defer cancel()
	if verb == "apply" {
		if err := kube.ApplyCRD(ctx, client); err != nil {
			return err
		}
		_, err := fmt.Fprintln(stdout, "the FlareCluster definition is that of", version)
		return err
	}
	deleted, left, err := kube.DeleteUnusedCRD(ctx, client)
	if err != nil {
		return err
	}
	if deleted {
		_, err = fmt.Fprintln(stdout, "the FlareCluster definition is deleted")
	} else {
		_, err = fmt.Fprintln(stdout, "the FlareCluster definition stays; in use by", strings.Join(left, ", "))
	}
	return err
}
