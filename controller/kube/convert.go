package kube

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/flarekv/flare/controller/api/v1"
	"github.com/flarekv/flare/controller/core"
)

// membersOf lists the nodes that the StatefulSet stands for, and those of its
// pods that are beyond its scale but still there. Without a StatefulSet nothing
// is known. of tells about a Kubernetes node.
func (c *Config) membersOf(sts *appsv1.StatefulSet, pods []*corev1.Pod, of func(node string) place) core.Members {
	if sts == nil {
		return core.Members{}
	}
	start, count := 0, 1
	if sts.Spec.Ordinals != nil {
		start = int(sts.Spec.Ordinals.Start)
	}
	if sts.Spec.Replicas != nil {
		count = int(*sts.Spec.Replicas)
	}
	byOrdinal := make(map[int]core.Member, count)
	for i := start; i < start+count; i++ {
		byOrdinal[i] = core.Member{Key: c.nodeKey(c.podName(i)), Ordinal: i}
	}
	for _, p := range pods {
		ordinal, ok := c.ordinal(p.Name)
		if !ok || ended(p) {
			continue
		}
		at := of(p.Spec.NodeName)
		byOrdinal[ordinal] = core.Member{
			Key:         c.nodeKey(p.Name),
			Ordinal:     ordinal,
			Zone:        at.zone,
			Address:     p.Status.PodIP,
			Exists:      true,
			Terminating: p.DeletionTimestamp != nil,
			Draining:    at.cordoned,
		}
	}
	m := core.Members{Known: true, Count: count, List: make([]core.Member, 0, len(byOrdinal))}
	for _, member := range byOrdinal {
		m.List = append(m.List, member)
	}
	slices.SortFunc(m.List, func(a, b core.Member) int { return cmp.Compare(a.Key, b.Key) })
	return m
}

// place is what is known of a Kubernetes node.
type place struct {
	zone     string
	cordoned bool // no pod shall be put there: it is being drained, or about to be
}

func (c *Config) podName(ordinal int) string {
	return c.StatefulSet + "-" + strconv.Itoa(ordinal)
}

// ordinal returns the number of a pod of the StatefulSet.
func (c *Config) ordinal(pod string) (int, bool) {
	digits, ok := strings.CutPrefix(pod, c.StatefulSet+"-")
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n < 0 || strconv.Itoa(n) != digits {
		return 0, false
	}
	return n, true
}

// ended tells whether no container of the pod runs or will run again. The
// StatefulSet deletes such a pod (an evicted one, say) and makes it anew.
func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
}

// labelsOf are the labels of a node's pod.
func labelsOf(l core.NodeLabel) map[string]string {
	m := map[string]string{
		LabelRole:      l.Role.String(),
		LabelPartition: "",
		LabelServing:   strconv.FormatBool(l.Serving),
	}
	if l.Partition >= 0 {
		m[LabelPartition] = strconv.Itoa(l.Partition)
	}
	return m
}

// statusOf translates the summary. Conditions that did not change their value
// keep the time of before.
func statusOf(s core.Status, before v1.FlareClusterStatus, now metav1.Time) v1.FlareClusterStatus {
	out := v1.FlareClusterStatus{
		ObservedGeneration: s.Generation,
		Phase:              v1.Phase(s.Phase),
		Reason:             s.Reason,
		Message:            s.Message,
		NodesReady:         fmt.Sprintf("%d/%d", s.NodesReady, s.NodesWanted),
		Masters:            fmt.Sprintf("%d/%d", s.MastersUp, len(s.Partitions)),
		Config:             configOf(s),
		MapVersion:         int64(s.MapVersion),
	}
	for _, p := range s.Partitions {
		out.Partitions = append(out.Partitions, v1.PartitionStatus{
			Partition: int32(p.Number),
			Epoch:     int64(p.Epoch),
			Master:    p.Master,
			InSync:    slices.Clone(p.InSync),
			Preparing: slices.Clone(p.Preparing),
			State:     v1.PartitionState(p.State),
		})
	}
	out.ClusterReplication = replicationStatusOf(s.Replication)
	out.Conditions = slices.Clone(before.Conditions)
	for _, c := range s.Conditions {
		value := metav1.ConditionFalse
		if c.True {
			value = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&out.Conditions, metav1.Condition{
			Type:               c.Type,
			Status:             value,
			ObservedGeneration: s.Generation,
			LastTransitionTime: now,
			Reason:             c.Reason,
			Message:            c.Message,
		})
	}
	// In the order of the core, without those it no longer knows.
	conditions := make([]metav1.Condition, 0, len(s.Conditions))
	for _, c := range s.Conditions {
		conditions = append(conditions, *meta.FindStatusCondition(out.Conditions, c.Type))
	}
	out.Conditions = conditions
	return out
}

// replicationStatusOf translates the summary of the cluster replication; nil for none.
func replicationStatusOf(r core.ReplicationStatus) *v1.ClusterReplicationStatus {
	if r.Phase == core.ReplicationNone && r.Target == "" {
		return nil
	}
	out := &v1.ClusterReplicationStatus{Phase: cmp.Or(string(r.Phase), "None"), Target: r.Target}
	for _, p := range r.Partitions {
		out.Partitions = append(out.Partitions, v1.PartitionReplicationStatus{
			Partition: int32(p.Number), Dumped: p.Dumped, Percent: int32(p.Percent), Reason: p.Reason,
		})
	}
	if c := r.Compared; c.At > 0 {
		out.Compared = &v1.ClusterComparison{
			At: metav1.NewTime(time.UnixMilli(c.At)), Equal: c.Equal, Exact: c.Exact,
			Records: int64(c.Records), TargetRecords: int64(c.Target), Differing: int32(c.Differing),
		}
	}
	return out
}

// configOf says in one word, or one fraction, what became of the configuration.
func configOf(s core.Status) string {
	switch s.ConfigReason {
	case "":
		return ""
	case v1.ReasonApplied, v1.ReasonRejected, v1.ReasonPendingRestart:
		return s.ConfigReason
	default:
		return fmt.Sprintf("%d/%d", s.ConfigNodes, s.NodesWanted)
	}
}
