package sidecar

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/options/wire"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// GetConfig tells what flared has, and what the agent knows of it when flared does
// not answer.
func (s agentService) GetConfig(ctx context.Context, _ *agentv1.GetConfigRequest) (*agentv1.GetConfigResponse, error) {
	var answer *agentv1.GetOptionsResponse
	err := s.a.askFlared(ctx, func(ctx context.Context, node agentv1.NodeServiceClient) (err error) {
		answer, err = node.GetOptions(ctx, &agentv1.GetOptionsRequest{})
		return err
	})
	if ctx.Err() != nil {
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	c := s.a.snapshot().Config
	resp := &agentv1.GetConfigResponse{
		Node:        s.a.set.Node,
		FromFlared:  err == nil,
		Generation:  c.File.Generation,
		Hash:        c.File.Hash,
		AppliedHash: c.Applied,
		Rejected:    c.Rejected,
		Message:     c.Message,
		AppliedText: c.Text,
	}
	if !c.ChangedAt.IsZero() {
		resp.ChangedAt = timestamppb.New(c.ChangedAt)
	}
	known := c.Options
	if err == nil {
		if resp.AppliedText = answer.GetAppliedText(); resp.AppliedText != "" {
			resp.AppliedHash = hashOf(resp.AppliedText)
		}
		// What was refused is not in force, and so not among what flared tells.
		known = withRefused(answer.GetOptions(), c)
	} else {
		resp.Note = fmt.Sprintf("%v; the values are those read back last, and options that cannot change at run time are not among them", err)
	}
	resp.Options = configOptions(known)
	return resp, nil
}

// withRefused adds to what flared says of the file that it has what it said of the
// one that it refused.
func withRefused(known []*agentv1.OptionStatus, c Config) []*agentv1.OptionStatus {
	if !c.Rejected {
		return known
	}
	in := make(map[string]*agentv1.OptionStatus, len(known))
	for _, o := range known {
		in[o.GetKey()] = o
	}
	for _, o := range c.Options {
		if o.GetState() != agentv1.OptionState_OPTION_STATE_REJECTED {
			continue
		}
		if k := in[o.GetKey()]; k != nil {
			k.Configured, k.State, k.Reason, k.Message, k.Line = o.GetConfigured(), o.GetState(), o.GetReason(), o.GetMessage(), o.GetLine()
		} else {
			known = append(known, o)
		}
	}
	return known
}

// configOptions puts what is known of options' values beside what they are.
func configOptions(known []*agentv1.OptionStatus) []*agentv1.ConfigOption {
	in := make(map[string]*agentv1.OptionStatus, len(known))
	for _, o := range known {
		in[o.GetKey()] = o
	}
	value := func(o *agentv1.ConfigOption, k *agentv1.OptionStatus) *agentv1.ConfigOption {
		o.Effective, o.Source, o.Configured, o.State = k.GetEffective(), k.GetSource(), k.GetConfigured(), k.GetState()
		o.Reason, o.Message, o.Line = k.GetReason(), k.GetMessage(), k.GetLine()
		return o
	}
	var out []*agentv1.ConfigOption
	for _, s := range options.Specs() {
		o := &agentv1.ConfigOption{Key: s.Key, DefaultValue: s.Default, Live: s.Live, Type: s.Type, Unit: s.Unit, Min: s.Min, Max: s.Max, Description: s.Doc}
		out = append(out, value(o, in[s.Key]))
		delete(in, s.Key)
	}
	// Names that are no options, and those of a newer flared.
	for _, k := range known {
		if in[k.GetKey()] != nil {
			out = append(out, value(&agentv1.ConfigOption{Key: k.GetKey()}, k))
		}
	}
	return out
}

// ValidateConfig has flared look at a text, or looks at it here.
func (s agentService) ValidateConfig(ctx context.Context, req *agentv1.ValidateConfigRequest) (*agentv1.ValidateConfigResponse, error) {
	resp := &agentv1.ValidateConfigResponse{Hash: hashOf(req.GetText())}
	err := s.a.askFlared(ctx, func(ctx context.Context, node agentv1.NodeServiceClient) error {
		answer, err := node.CheckOptions(ctx, &agentv1.CheckOptionsRequest{Text: req.GetText()})
		resp.Accepted, resp.Options = answer.GetAccepted(), answer.GetOptions()
		return err
	})
	switch {
	case ctx.Err() != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	case err == nil:
		resp.CheckedByFlared = true
		return resp, nil
	}
	known := s.a.snapshot().Config.Options
	wanted, settings, refused := options.Parse(ConfigFile, []byte(req.GetText()), options.Default())
	verdicts := options.Preview(readBack(known), wanted, settings, refused, nil)
	if !slices.ContainsFunc(known, func(o *agentv1.OptionStatus) bool { return o.GetEffective() != "" }) {
		// Nothing was ever read back to compare with.
		for i := range verdicts {
			verdicts[i].Current = ""
		}
	}
	resp.Accepted, resp.Options = refused == nil, wire.Verdicts(verdicts)
	resp.Note = fmt.Sprintf("%v; the agent alone has looked, and compared with the values read back last: flared's own file, its command line and RocksDB may say otherwise", err)
	return resp, nil
}

// askFlared runs a short call to flared.
func (a *Agent) askFlared(ctx context.Context, call func(context.Context, agentv1.NodeServiceClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := a.relay(ctx, call); err != nil {
		return fmt.Errorf("flared does not answer: %s", status.Convert(err).Message())
	}
	return nil
}
