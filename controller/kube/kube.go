// Package kube lets a controller live in Kubernetes: it elects the leader, reads
// the FlareCluster and its pods, and writes what the core decides. It is the only
// package that knows client-go, and it decides nothing about the cluster itself.
//
// # Objects
//
//	FlareCluster <cluster>           read; status applied, only on change
//	ConfigMap    <cluster>-node-map  the durable state, key "state" (JSON), updated
//	ConfigMap    <cluster>-config    keys "extra.conf" and "generation", mounted by data pods, applied
//	StatefulSet                      read; its scale subresource patched
//	Pods of the StatefulSet          read; labels role, partition, serving and an annotation applied
//	Pods of the controller           label leader written
//	Lease        <cluster>-controller
//
// What is created here has the FlareCluster as owner, so that nothing stays when
// it goes. "Applied" is server-side apply under a field manager of the controller's:
// what others write beside it stays theirs.
//
// Caches tell what to look at, never what may be destroyed: before pods are taken
// away the API server itself is asked (ScaleTo).
//
// # One writer
//
// Two things keep a former leader from writing the durable state: the lease, and
// the resourceVersion. A new leader begins by writing the state it found, under
// its own name; from then on every write of the former one conflicts, and it ends
// with runtime.ErrFenced.
package kube

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	v1 "github.com/flarekv/flare/controller/api/v1"
)

// Labels and annotations that the controller writes on pods and objects.
const (
	LabelLeader    = "flarekv.io/leader"
	LabelRole      = "flarekv.io/role"
	LabelPartition = "flarekv.io/partition"
	LabelServing   = "flarekv.io/serving"

	AnnotationConfigHash = "flarekv.io/config-hash"
	AnnotationWriter     = "flarekv.io/written-by"
)

// Keys of the ConfigMaps.
const (
	KeyState      = "state"
	KeyConfig     = "extra.conf"
	KeyGeneration = "generation"
)

// Defaults of Config.
const (
	DefaultKeyFormat = "{pod}.{service}.{namespace}.svc:{port}"
	DefaultNodePort  = 12121
	DefaultZoneLabel = "topology.kubernetes.io/zone"
)

// ErrClusterGone tells that the FlareCluster was deleted while it was led.
var ErrClusterGone = errors.New("the FlareCluster was deleted")

// Config names the objects of one cluster and holds the clients to reach them.
type Config struct {
	Namespace string
	// Cluster is the name of the FlareCluster.
	Cluster string
	// PodName is this process's pod, which is also its name in the election.
	PodName string
	// StatefulSet of the data pods; empty means the cluster's name.
	StatefulSet string
	// HeadlessService of the data pods; empty means <cluster>-nodes.
	HeadlessService string
	// KeyFormat makes a node key of a pod: {pod}, {service}, {namespace} and {port}
	// are replaced. It must be what flared registers under.
	KeyFormat string
	NodePort  int
	// PodSelector selects the data pods, ControllerSelector the controller's.
	PodSelector        string
	ControllerSelector string
	// Lease is the name of the election's Lease; empty means <cluster>-controller.
	Lease string
	// ZoneLabel is the label of a Node that names its zone.
	ZoneLabel string

	Kube    kubernetes.Interface
	Dynamic dynamic.Interface
	Logger  *slog.Logger
	// Resync is the distance of full comparisons that need no event; 0 for 30 s.
	Resync time.Duration
	// Now is the clock for condition times; nil for time.Now.
	Now func() time.Time
	// Retried and Refused, if not nil, are told why a request to the API server is made
	// again, and why one was not made at all. For metrics.
	Retried, Refused func(reason string)
}

// complete fills in defaults and refuses what cannot work.
func (c *Config) complete() error {
	set := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	set(&c.StatefulSet, c.Cluster)
	set(&c.HeadlessService, c.Cluster+"-nodes")
	set(&c.KeyFormat, DefaultKeyFormat)
	set(&c.Lease, c.Cluster+"-controller")
	set(&c.ZoneLabel, DefaultZoneLabel)
	if c.NodePort == 0 {
		c.NodePort = DefaultNodePort
	}
	if c.Resync == 0 {
		c.Resync = 30 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	var problems []error
	for _, n := range []struct{ what, value string }{
		{"namespace", c.Namespace}, {"cluster", c.Cluster}, {"pod name", c.PodName},
		{"StatefulSet", c.StatefulSet}, {"headless Service", c.HeadlessService}, {"lease", c.Lease},
	} {
		if n.value == "" {
			problems = append(problems, fmt.Errorf("no %s given", n.what))
		} else if bad := validation.IsDNS1123Subdomain(n.value); len(bad) > 0 {
			problems = append(problems, fmt.Errorf("%s %q is no name of a Kubernetes object: %s", n.what, n.value, strings.Join(bad, "; ")))
		}
	}
	for _, s := range []struct{ what, value string }{
		{"pod selector", c.PodSelector}, {"controller selector", c.ControllerSelector},
	} {
		if s.value == "" {
			problems = append(problems, fmt.Errorf("no %s given: it must be labels such as app.kubernetes.io/instance=NAME", s.what))
		} else if _, err := labels.Parse(s.value); err != nil {
			problems = append(problems, fmt.Errorf("%s %q: %w", s.what, s.value, err))
		}
	}
	if !strings.Contains(c.KeyFormat, "{pod}") || !strings.HasSuffix(c.KeyFormat, ":{port}") {
		problems = append(problems, fmt.Errorf("node key format %q must contain {pod} and end with :{port}, such as %s", c.KeyFormat, DefaultKeyFormat))
	}
	if c.NodePort < 1 || c.NodePort > 65535 {
		problems = append(problems, fmt.Errorf("node port %d is not within 1..65535", c.NodePort))
	}
	return errors.Join(problems...)
}

func (c *Config) nodeMapName() string { return c.Cluster + "-node-map" }
func (c *Config) configName() string  { return c.Cluster + "-config" }

// nodeKey returns the key under which flared in that pod registers.
func (c *Config) nodeKey(pod string) string {
	return strings.NewReplacer(
		"{pod}", pod,
		"{service}", c.HeadlessService,
		"{namespace}", c.Namespace,
		"{port}", strconv.Itoa(c.NodePort),
	).Replace(c.KeyFormat)
}

// ownerOf returns the reference that makes an object go with the FlareCluster.
func ownerOf(name string, uid types.UID) []metav1.OwnerReference {
	return []metav1.OwnerReference{{
		APIVersion: v1.GroupVersion.String(),
		Kind:       v1.Kind,
		Name:       name,
		UID:        uid,
		Controller: new(true),
	}}
}
