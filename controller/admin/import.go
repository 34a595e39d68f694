package admin

import (
	"context"

	"google.golang.org/grpc/codes"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/flarexml"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// ReasonNotFlareXML tells that a file is not the state of a C++ index server.
const ReasonNotFlareXML = "not_flare_xml"

// ImportFlareXML makes the node map of a C++ index server the beginning of a cluster
// that knows no nodes yet. The core decides; what it says in one word is told here in
// more.
func (c *controllerService) ImportFlareXML(ctx context.Context, req *controllerv1.ImportFlareXMLRequest) (*controllerv1.ImportFlareXMLResponse, error) {
	l, err := c.s.lead()
	if err != nil {
		return nil, err
	}
	file, err := flarexml.Parse(req.GetContent())
	if err != nil {
		return nil, refusal(codes.InvalidArgument, ReasonNotFlareXML, "content: %v", err)
	}
	t := l.Topology()
	d, err := core.Import(file.Map, file.NextThread, t.Spec.Meta)
	if err != nil {
		return nil, refusal(codes.InvalidArgument, core.RefuseMapIncomplete, "content: %v", err)
	}
	switch {
	case len(t.Map.Nodes) > 0:
		return nil, refusal(codes.FailedPrecondition, core.RefuseStateExists,
			"the cluster has %d nodes already; an import must be its beginning", len(t.Map.Nodes))
	case t.Spec.Known && len(d.Partitions) != t.Spec.Partitions:
		return nil, refusal(codes.FailedPrecondition, core.RefusePartitionsOther,
			"the file has %d partitions, the FlareCluster asks for %d; they must agree", len(d.Partitions), t.Spec.Partitions)
	}
	cmd := core.Command{Verb: core.VerbImport, Import: &core.Imported{Map: file.Map, NextThread: file.NextThread}}
	out, err := c.s.operate(ctx, l, cmd, req.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &controllerv1.ImportFlareXMLResponse{Outcome: out, Nodes: uint32(len(d.Nodes)), Partitions: uint32(len(d.Partitions)), MapVersion: file.Map.Version}, nil
}
