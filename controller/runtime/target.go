package runtime

import (
	"context"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/target"
)

// checkTarget looks at the cluster that this one is to be replicated to.
func checkTarget(ctx context.Context, e core.CheckTarget) core.TargetChecked {
	out := core.TargetChecked{Seq: e.Seq, Target: e.Target}
	c, err := target.Look(ctx, e.Target)
	if err != nil {
		out.Reason, out.Message = target.ReasonOf(err), err.Error()
		return out
	}
	out.Nodes, out.Destination = c.Keys(), c.Destination
	return out
}
