package admin

import (
	"context"
	"errors"
	"math"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
	"github.com/flarekv/flare/proto/topology"
)

// Reasons of refusals that are not the core's.
const (
	ReasonNotDurable = "not_durable_in_time"
	ReasonNoDuty     = "no_duty"
)

// commandTimeout bounds the wait for a change to become durable, for callers that set
// no deadline.
const commandTimeout = 10 * time.Second

// handoverTimeout bounds the wait for a handover: a node that asks the index for one
// may wait for half a minute to learn what became of it.
const handoverTimeout = time.Minute

// operate has an operator's command carried out, or with dryRun tried.
func (s *Server) operate(ctx context.Context, l *leading, cmd core.Command, dryRun bool) (*controllerv1.Outcome, error) {
	o, err := s.command(ctx, l, cmd, dryRun, commandTimeout)
	if err != nil {
		return nil, err
	}
	return outcomeProto(o, dryRun), nil
}

// command is operate for who wants to see more of what came of it, or waits longer.
func (s *Server) command(ctx context.Context, l *leading, cmd core.Command, dryRun bool, limit time.Duration) (core.Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	do := l.Apply
	if dryRun {
		do = l.Try
	}
	o, err := do(ctx, cmd)
	switch {
	case errors.Is(err, runtime.ErrStopped) || err != nil && l.over.Err() != nil:
		return o, s.notLeader()
	case errors.Is(err, context.DeadlineExceeded):
		return o, refusal(codes.DeadlineExceeded, ReasonNotDurable, "the change was not durable in time; it may still become so")
	case err != nil:
		return o, refusal(codes.Canceled, ReasonNotDurable, "%v", err)
	}
	if !dryRun {
		from := ""
		if p, ok := peer.FromContext(ctx); ok {
			from = p.Addr.String()
		}
		s.log.InfoContext(ctx, "operator's command", "command", core.Describe(cmd), "peer", from, "refused", o.Reply.Reason, "changes", len(o.Decisions))
	}
	if o.Reply.Reason != "" {
		why := o.Reply.Reason
		if strings.HasPrefix(o.Reply.Err, why+": ") {
			why = o.Reply.Err // in words, too
		}
		return o, refusal(refusalCode(o.Reply.Reason), o.Reply.Reason, "%s is refused: %s", core.Describe(cmd), why)
	}
	return o, nil
}

// refusalCode tells a caller whether to correct the request, or to wait.
func refusalCode(reason string) codes.Code {
	switch reason {
	case core.RefuseNoSuchNode:
		return codes.NotFound
	case core.RefuseBalance, core.RefusePartition, core.RefuseState, core.RefuseNote, core.RefuseSeconds:
		return codes.InvalidArgument
	}
	return codes.FailedPrecondition
}

func outcomeProto(o core.Outcome, dryRun bool) *controllerv1.Outcome {
	out := &controllerv1.Outcome{DryRun: dryRun}
	for _, d := range o.Decisions {
		out.Changes = append(out.Changes, &controllerv1.DutyChange{Node: d.Node, OldDuty: d.Old, NewDuty: d.New, Reason: d.Reason, MapVersion: d.Version})
	}
	for _, e := range o.Events {
		out.Notices = append(out.Notices, &controllerv1.Notice{Warning: e.Warning, Reason: e.Reason, Message: e.Message})
	}
	return out
}

// nodeCommand is a command about a node; its error is that of the call.
func nodeCommand(verb core.Verb, node string) (core.Command, error) {
	name, port, err := topology.SplitKey(node)
	if err != nil {
		return core.Command{}, refusal(codes.InvalidArgument, ReasonNodeInvalid, "node %q is not the host:port under which flared registers: %v", node, err)
	}
	return core.Command{Verb: verb, Name: name, Port: port, Balance: -1, Partition: topology.NoPartition}, nil
}

// Handover has a master told to hand over, and waits until it has.
func (c *controllerService) Handover(ctx context.Context, req *controllerv1.HandoverRequest) (*controllerv1.HandoverResponse, error) {
	l, err := c.s.lead()
	if err != nil {
		return nil, err
	}
	cmd, err := nodeCommand(core.VerbMove, req.GetNode())
	if err != nil {
		return nil, err
	}
	if req.GetTarget() != "" {
		target, err := nodeCommand(core.VerbMove, req.GetTarget())
		if err != nil {
			return nil, err
		}
		cmd.Target, cmd.TargetPort = target.Name, target.Port
	}
	n, ok := l.Topology().Map.Find(req.GetNode())
	if !ok {
		return nil, refusal(codes.NotFound, core.RefuseNoSuchNode, "%s is not in the node map", req.GetNode())
	}
	o, err := c.s.command(ctx, l, cmd, req.GetDryRun(), handoverTimeout)
	if err != nil {
		return nil, err
	}
	resp := &controllerv1.HandoverResponse{Outcome: outcomeProto(o, req.GetDryRun()), Partition: agentv1.OptionalPartition(n.Partition)}
	if len(o.Orders) > 0 {
		resp.Target = o.Orders[0].Target
	}
	if parts := l.Topology().Partitions; !req.GetDryRun() && n.Partition >= 0 && n.Partition < len(parts) {
		resp.Epoch = parts[n.Partition].Epoch
	}
	return resp, nil
}

// SetNodeState has a node's state changed.
func (c *controllerService) SetNodeState(ctx context.Context, req *controllerv1.SetNodeStateRequest) (*controllerv1.SetNodeStateResponse, error) {
	l, err := c.s.lead()
	if err != nil {
		return nil, err
	}
	cmd, err := nodeCommand(core.VerbState, req.GetNode())
	if err != nil {
		return nil, err
	}
	// stateOf makes what it does not know down, which here would be a command.
	if cmd.State = stateOf(req.GetState()); stateProto(cmd.State) != req.GetState() {
		return nil, refusal(codes.InvalidArgument, core.RefuseState, "state %v: want STATE_ACTIVE, STATE_READY or STATE_DOWN", req.GetState())
	}
	cmd.AllowDataLoss = req.GetAllowDataLoss()
	out, err := c.s.operate(ctx, l, cmd, req.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &controllerv1.SetNodeStateResponse{Outcome: out}, nil
}

// SetBalance has a node's share of reads changed.
func (c *controllerService) SetBalance(ctx context.Context, req *controllerv1.SetBalanceRequest) (*controllerv1.SetBalanceResponse, error) {
	l, err := c.s.lead()
	if err != nil {
		return nil, err
	}
	cmd, err := nodeCommand(core.VerbRole, req.GetNode())
	if err != nil {
		return nil, err
	}
	if req.GetBalance() > math.MaxInt32 {
		return nil, refusal(codes.InvalidArgument, core.RefuseBalance, "balance %d: want at most %d", req.GetBalance(), math.MaxInt32)
	}
	cmd.Balance = int(req.GetBalance())
	n, ok := l.Topology().Map.Find(req.GetNode())
	switch {
	case !ok:
		return nil, refusal(codes.NotFound, core.RefuseNoSuchNode, "%s is not in the node map", req.GetNode())
	case n.Role == topology.Proxy && n.State != topology.Down:
		return nil, refusal(codes.FailedPrecondition, ReasonNoDuty, "%s is a proxy: it has no partition whose reads it could take", req.GetNode())
	}
	// The core refuses it if the node has another role by now.
	cmd.Role, cmd.Partition = n.Role, n.Partition
	out, err := c.s.operate(ctx, l, cmd, req.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &controllerv1.SetBalanceResponse{Outcome: out}, nil
}

// ForceMaster has a node made the master of a partition that has none.
func (c *controllerService) ForceMaster(ctx context.Context, req *controllerv1.ForceMasterRequest) (*controllerv1.ForceMasterResponse, error) {
	l, err := c.s.lead()
	if err != nil {
		return nil, err
	}
	cmd, err := nodeCommand(core.VerbForce, req.GetNode())
	if err != nil {
		return nil, err
	}
	if req.Partition != nil {
		cmd.Partition = int(min(req.GetPartition(), math.MaxInt32))
	}
	cmd.AllowDataLoss, cmd.Note = req.GetAllowDataLoss(), req.GetReason()
	out, err := c.s.operate(ctx, l, cmd, req.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &controllerv1.ForceMasterResponse{Outcome: out}, nil
}

// Pause keeps roles from changing by themselves.
func (c *controllerService) Pause(ctx context.Context, req *controllerv1.PauseRequest) (*controllerv1.PauseResponse, error) {
	l, err := c.s.lead()
	if err != nil {
		return nil, err
	}
	out, err := c.s.operate(ctx, l, core.Command{Verb: core.VerbPause, Note: req.GetReason()}, req.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &controllerv1.PauseResponse{Outcome: out}, nil
}

// Resume ends what Pause began.
func (c *controllerService) Resume(ctx context.Context, req *controllerv1.ResumeRequest) (*controllerv1.ResumeResponse, error) {
	l, err := c.s.lead()
	if err != nil {
		return nil, err
	}
	out, err := c.s.operate(ctx, l, core.Command{Verb: core.VerbResume}, req.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &controllerv1.ResumeResponse{Outcome: out}, nil
}

// OverrideBreaker lets roles change although too many nodes are lost.
func (c *controllerService) OverrideBreaker(ctx context.Context, req *controllerv1.OverrideBreakerRequest) (*controllerv1.OverrideBreakerResponse, error) {
	l, err := c.s.lead()
	if err != nil {
		return nil, err
	}
	cmd := core.Command{Verb: core.VerbOverride, Seconds: int(min(req.GetSeconds(), math.MaxInt32)), Note: req.GetReason()}
	out, err := c.s.operate(ctx, l, cmd, req.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &controllerv1.OverrideBreakerResponse{Outcome: out}, nil
}
