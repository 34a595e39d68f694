package node

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/options/wire"
	"github.com/flarekv/flare/agent/storage"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// GetOptions implements NodeService.
func (v *service) GetOptions(context.Context, *agentv1.GetOptionsRequest) (*agentv1.GetOptionsResponse, error) {
	statuses, text, err := v.s.configuration()
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &agentv1.GetOptionsResponse{Options: statuses, AppliedText: text}, nil
}

// CheckOptions implements NodeService.
func (v *service) CheckOptions(_ context.Context, req *agentv1.CheckOptionsRequest) (*agentv1.CheckOptionsResponse, error) {
	verdicts, accepted, err := v.s.checkText([]byte(req.GetText()))
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &agentv1.CheckOptionsResponse{Accepted: accepted, Options: wire.Verdicts(verdicts)}, nil
}

var errNoOptions = errors.New("this node takes no options")

// configuration returns what became of each option of the text that was applied last,
// and the text.
func (s *Server) configuration() (statuses []*agentv1.OptionStatus, text string, err error) {
	if s.settings == nil {
		return nil, "", errNoOptions
	}
	s.settings.mu.Lock()
	defer s.settings.mu.Unlock()
	now := s.readBack(*s.live.Load())
	s.live.Store(&now)
	wanted, named, err := s.settings.wanted(textName, s.settings.applied, s.settings.base)
	return s.settings.messages(s.report(wanted, named, err)), string(s.settings.applied), nil
}

// messages adds where the values come from.
func (s *Settings) messages(statuses []options.Status) []*agentv1.OptionStatus {
	out := make([]*agentv1.OptionStatus, len(statuses))
	for i, st := range statuses {
		out[i] = wire.Status(st, s.sources.Of(st.Key))
	}
	return out
}

// checkText tells what applyText would do.
func (s *Server) checkText(text []byte) (verdicts []options.Verdict, accepted bool, err error) {
	if s.settings == nil {
		return nil, false, errNoOptions
	}
	s.settings.mu.Lock()
	defer s.settings.mu.Unlock()
	running := *s.live.Load()
	wanted, named, refused := s.settings.wanted(textName, text, s.settings.base)
	if refused == nil {
		live, others := storage.Tuning(running.WithLive(wanted).EngineValues()), storage.Tuning(wanted.EngineValues())
		refused = engineRefusal(textName, named, s.db.CheckTuning(live, others))
	}
	return options.Preview(running, wanted, named, refused, s.settings.line), refused == nil, nil
}
