package core

import "fmt"

// DescribeEffect names an effect in a few words, for logs; empty for those that tell
// of themselves there (Decision, Event, Refused).
func DescribeEffect(e Effect) string {
	switch e := e.(type) {
	case Persist:
		return fmt.Sprintf("persist seq=%d", e.Durable.Seq)
	case Reply:
		if e.Reason != "" {
			return "refuse " + e.Reason
		}
		return "reply"
	case Broadcast:
		return fmt.Sprintf("broadcast v%d", e.Update.Map.Version)
	case WriteConfig:
		return fmt.Sprintf("config generation=%d", e.Generation)
	case ScaleTo:
		return fmt.Sprintf("scale from %d to %d", e.From, e.Nodes)
	case LabelNodes:
		return "label"
	case WriteStatus:
		return "status"
	case GrantLease:
		return fmt.Sprintf("lease %s epoch=%d", e.Key, e.Epoch)
	case Decision, Event, Refused:
		return ""
	}
	return fmt.Sprintf("%T", e)
}
