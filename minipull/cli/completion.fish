# fish completion of minipull; to be sourced, or kept as ~/.config/fish/completions/minipull.fish
function __minipull_words
    set -l typed (commandline -opc)
    set -l word (commandline -ct)
    for line in (PROGRAM completion fish +$typed[2..-1] +"$word" 2>/dev/null)
        if string match -q -- ':files*' $line
            set -l prefix (string sub -s 8 -- $line)
            set -l size (string length -- "$prefix")
            for path in (__fish_complete_path (string sub -s (math $size + 1) -- "$word"))
                echo -- $prefix$path
            end
        else
            echo -- $line
        end
    end
end
complete -c minipull -f -a '(__minipull_words)'
