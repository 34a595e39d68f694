package lab

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Status is what can be said of a lab at one moment.
type Status struct {
	Up      bool // there is a lab, in whatever state
	Healthy bool
	Problem string // why it is not
	Since   time.Time
	Control map[string]bool // control plane processes: is it running
	Nodes   []NodeStatus
	Gateway int // node that carries the machine's own Service traffic
}

// NodeStatus is what the lab did to a node, and what became of it.
type NodeStatus struct {
	Node
	On      bool
	Cut     bool
	CutFrom []int
	Dead    []string // programs that should run in it and do not
}

// Status looks at the lab without changing it.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	st, err := l.load()
	if err != nil {
		return Status{}, err
	}
	if st == nil {
		return Status{Problem: "there is no lab"}, nil
	}
	out := Status{Up: true, Since: st.Started, Gateway: st.Gateway, Control: map[string]bool{}}
	for name, p := range st.Control {
		out.Control[name] = p.alive()
	}
	plan, err := planNodes(len(st.Nodes))
	if err != nil {
		return Status{}, err
	}
	for i, ns := range st.Nodes {
		node := NodeStatus{Node: plan[i], On: ns.on(), Cut: ns.Cut, CutFrom: ns.CutOff}
		if node.On {
			for _, part := range nodeParts {
				if !ns.Parts[part].alive() {
					node.Dead = append(node.Dead, part)
				}
			}
		}
		out.Nodes = append(out.Nodes, node)
	}
	if err := l.problem(ctx, st, plan); err != nil {
		out.Problem = err.Error()
	} else {
		out.Healthy = true
	}
	return out, nil
}

// String is the status for people.
func (s Status) String() string {
	if !s.Up {
		return s.Problem + "\n"
	}
	var b strings.Builder
	if s.Healthy {
		fmt.Fprintf(&b, "healthy, up for %v\n", time.Since(s.Since).Round(time.Second))
	} else {
		fmt.Fprintf(&b, "not healthy: %s\n", s.Problem)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Control)) {
		fmt.Fprintf(&b, "  %-24s %s\n", name, map[bool]string{true: "running", false: "NOT RUNNING"}[s.Control[name]])
	}
	for _, n := range s.Nodes {
		fmt.Fprintf(&b, "  %s  %-12s %s  ", n.Name, n.Addr, n.Zone)
		var words []string
		if !n.On {
			words = append(words, "powered off")
		}
		if n.Cut {
			words = append(words, "cut off from everything")
		}
		for _, other := range n.CutFrom {
			words = append(words, fmt.Sprintf("cut from n%d", other))
		}
		for _, part := range n.Dead {
			words = append(words, part+" is dead")
		}
		if len(words) == 0 {
			words = append(words, "on")
		}
		if n.Number == s.Gateway {
			words = append(words, "gateway to Services")
		}
		fmt.Fprintln(&b, strings.Join(words, ", "))
	}
	return b.String()
}
