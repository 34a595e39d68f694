package procs

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
)

// RecordedFlareXML returns the state of a C++ index server at the end of the recording of
// its commands, which is in a file. It has four nodes on ports of 127.0.0.1: 19301 is the
// master of partition 0, 19304 that of partition 1, 19305 is being filled with partition
// 2, and 19303 has no duty; the last two but 19305 are down.
func RecordedFlareXML(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		var l struct{ Case, Recv string }
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			return "", fmt.Errorf("%s: %w", file, err)
		}
		if l.Case == "flare.xml-after-all" {
			return l.Recv, nil
		}
	}
	return "", fmt.Errorf("%s: no flare.xml is recorded", file)
}

// FinishPreparing gives up the partition that is being prepared in the recording: its node
// has no duty any more.
func FinishPreparing(xml string) (string, error) {
	const before = "<node_server_port>19305</node_server_port>\n\t\t\t<node_role>0</node_role>\n\t\t\t<node_state>1</node_state>\n\t\t\t<node_partition>2</node_partition>\n\t\t\t<node_balance>1<"
	after := strings.NewReplacer("<node_role>0", "<node_role>2", "<node_state>1", "<node_state>0", "<node_partition>2", "<node_partition>-1", "<node_balance>1", "<node_balance>0").Replace(before)
	if strings.Count(xml, before) != 1 {
		return "", errors.New("the recording has another form")
	}
	return strings.Replace(xml, before, after, 1), nil
}
