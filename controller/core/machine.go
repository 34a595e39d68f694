package core

// StepName is a step of the reconcile machine.
type StepName string

// The steps, in order. Each decides on its own and issues at most one request;
// a run goes through all of them and ends in Done. It rests at AssignRoles while
// the decisions before it are being made durable.
//
//	Init -> FetchSpec -> ListPods -> DetectDead -> Failover -> AssignRoles
//	     -> WriteConfig -> ClusterReplication -> Broadcast -> RouteServices
//	     -> WriteStatus -> Done
//
// Any input starts it anew at Init. Requests other than Persist are not waited
// for: their results are inputs, and a request of a kind that is still under way
// is left for the run that its result starts. So a slow or failing request holds
// up nothing else, and a run ends after at most eleven steps whatever the state is.
const (
	StepInit          StepName = "Init"
	StepFetchSpec     StepName = "FetchSpec"
	StepListPods      StepName = "ListPods"
	StepDetectDead    StepName = "DetectDead"
	StepFailover      StepName = "Failover"
	StepAssignRoles   StepName = "AssignRoles"
	StepWriteConfig   StepName = "WriteConfig"
	StepReplication   StepName = "ClusterReplication"
	StepBroadcast     StepName = "Broadcast"
	StepRouteServices StepName = "RouteServices"
	StepWriteStatus   StepName = "WriteStatus"
	StepDone          StepName = "Done"
)

// Machine is where the reconcile machine is, and what its steps hand on.
type Machine struct {
	Step StepName
	Dead []Death  // found by DetectDead, for Failover
	Back []string // nodes that are down and alive again
}

// Death is a node found dead, and the evidence.
type Death struct {
	Key    string
	Reason string
}

// next takes a step and names the one after it; the same name means to rest.
func (w *work) next(step StepName) StepName {
	switch step {
	case StepInit:
		w.s.Machine = Machine{}
		return StepFetchSpec
	case StepFetchSpec:
		w.judgeSpec()
		return StepListPods
	case StepListPods:
		w.adopt()
		w.scale()
		return StepDetectDead
	case StepDetectDead:
		w.judgeGrace()
		w.judgeBreaker()
		w.s.Machine.Dead = w.findDead()
		w.s.Machine.Back = w.findBack()
		return StepFailover
	case StepFailover:
		w.failover(w.s.Machine.Dead)
		for _, key := range w.s.Machine.Back {
			w.up(key, "back")
		}
		w.s.Machine.Dead, w.s.Machine.Back = nil, nil
		w.payOwed()
		w.tidyGrowth()
		return StepAssignRoles
	case StepAssignRoles:
		w.assign()
		w.forget()
		w.commit()
		w.save()
		if w.s.Saving.Seq != 0 {
			return StepAssignRoles
		}
		return StepWriteConfig
	case StepWriteConfig:
		w.writeConfig()
		return StepReplication
	case StepReplication:
		w.clusterReplication()
		return StepBroadcast
	case StepBroadcast:
		w.release()
		return StepRouteServices
	case StepRouteServices:
		w.routeServices()
		return StepWriteStatus
	case StepWriteStatus:
		w.writeStatus()
		return StepDone
	}
	return StepDone
}

// reconcile runs the machine until it rests or is done.
func (w *work) reconcile() {
	if w.s.Started == 0 {
		return // without the time nothing can be judged
	}
	for step := StepInit; ; {
		next := w.next(step)
		w.commit()
		w.s.Machine.Step = next
		if next == step || next == StepDone {
			return
		}
		step = next
	}
}

// writeConfig publishes the options when they differ from what is published.
func (w *work) writeConfig() {
	s := &w.s
	want := ConfigKey{Generation: s.Spec.Generation, Text: s.configText()}
	if !s.Spec.Known || s.replicationUnknown() || want == s.ConfigWritten || !w.open(&s.Config) {
		return
	}
	s.ConfigWanted = want
	w.emit(WriteConfig{Seq: s.Config.Seq, Generation: want.Generation, Text: want.Text})
}

// routeServices labels the nodes when their duties differ from the labels.
func (w *work) routeServices() {
	s := &w.s
	labels := make([]NodeLabel, 0, len(s.Saved.Nodes))
	for _, n := range s.Saved.Nodes {
		m, member := s.member(n.Key())
		labels = append(labels, NodeLabel{
			Key: n.Key(), Role: n.Role, State: n.State, Partition: n.Partition,
			Serving: n.up() && !(member && (m.Terminating || !m.Exists)),
		})
	}
	if equalLabels(labels, s.LabelsDone) || !w.open(&s.Labels) {
		return
	}
	s.LabelsSent = labels
	w.emit(LabelNodes{Seq: s.Labels.Seq, Labels: labels})
}

// wantedNodes is the number of nodes that shall exist, 0 while not known.
func (s *State) wantedNodes() int {
	if !s.Spec.Known {
		return 0
	}
	return s.targetPartitions() * s.Spec.Replicas
}

// partitions is the number of partitions in force: what is established, and
// before that what is asked for.
func (s *State) partitions() int {
	if n := len(s.Durable.Partitions); n > 0 {
		return n
	}
	return s.Spec.Partitions
}
