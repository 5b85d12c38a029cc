-- A heap of tables, strings, floats, closures, and what comes in.
local function tree(depth) return depth == 0 and {} or { tree(depth - 1), tree(depth - 1) } end
local function nodes(t) return t[1] and 1 + nodes(t[1]) + nodes(t[2]) or 1 end

local lines, total = 0, 0
for line in io.lines() do
  line = line:match("%d+")
  lines = lines + 1
  local kept = tree(10)
  local words = {}
  for i = 1, 4000 do
    local key = line .. i % 97
    words[key] = (words[key] or 0) + #key
  end
  local keys = {}
  for key in pairs(words) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b) return words[a] == words[b] and a < b or words[a] < words[b] end)
  local f = 0.0
  for i = 1, 20000 do f = f + math.sin(i + lines) * math.sqrt(i) end
  total = total + nodes(kept)
  print(line, keys[1], words[keys[1]], string.format("%.9f", f), (string.rep(line, 3):gsub("%d", "%0%0")))
end
local file = io.open("/kept.txt", "w")
file:write(total, "\n")
file:close()
print(lines, total)
return 5
